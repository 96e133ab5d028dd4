"""What a profile says: from small programs, compiled and run."""

import time

import jax
import jax.numpy as jnp
import pytest

from experiments.training.profiling import NO_BLOCK, classify, spent, table
from jaxlocal import rules
from jaxlocal.executors.compiler import compiler_options, uncached
from tests import toy
from tests.programs import program


@pytest.fixture(autouse=True)
def _not_from_a_cache():
    """Programs of a cache may have another program's names."""
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.mark.slow
def test_every_block_has_every_kind():
    t = toy.make(rules.dgl())
    (lowered,) = t.executor.programs(t.state, t.batch)
    found = set(classify(lowered.compile().as_text()).values())
    for i in range(5):
        kinds = {kind for block, kind in found if block == f"block {i}"}
        assert {"conv", "conv weight grad", "batch norm", "dense", "optimizer"} <= kinds
    # The gradient for a block's input is not computed: of block 4, which has no head of convolutions, there is none.
    assert ("block 3", "conv input grad") in found
    assert ("block 4", "conv input grad") not in found


def product(x):
    return jax.lax.dot_general(x, x, (((1,), (0,)), ((), ())))


def convolution(x):
    """Whose work XLA's CPU backend leaves to tasks of its threads."""
    kernel = jnp.ones((3, 3, 64, 64))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("heavy", "shape", "kind"), [(product, (1024, 1024), "dense"), (convolution, (64, 32, 32, 64), "conv")]
)
@pytest.mark.parametrize("options", [{}, compiler_options()])
def test_a_heavy_operation_has_its_share(heavy, shape, kind, options, tmp_path):
    def step(x):
        with jax.named_scope("block_3"):
            return heavy(x) + 1

    x = jnp.ones(shape)
    with uncached():
        compiled = jax.jit(step, compiler_options=options).lower(x).compile()
    jax.block_until_ready(compiled(x))
    with jax.profiler.trace(str(tmp_path)):
        began = time.process_time()
        jax.block_until_ready(compiled(x))
        took = time.process_time() - began
    (trace,) = tmp_path.rglob("*.xplane.pb")
    seconds = spent(trace, {"jit_step": classify(compiled.as_text())})
    assert seconds["block 3", kind] > 0.5 * sum(seconds.values())
    assert seconds["block 3", kind] > 0.3 * took


def test_the_table_adds_up():
    seconds = {("block 10", "conv"): 1.0, ("block 2", "dense"): 2.0, (NO_BLOCK, "other"): 1.0}
    rows = [line.split("|")[1:-1] for line in table(seconds, 2).splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == ["block 2", "block 10", NO_BLOCK, "all"]
    assert [row[-1].strip() for row in rows[2:]] == ["50.0", "25.0", "25.0", "100.0"]
    assert "2.0000 s of work a step" in table(seconds, 2)
    many = {(f"block {i}", "conv"): 1.0 for i in range(30)}
    assert "10 more" in table(many, 1)


@pytest.mark.slow
def test_training_prints_where_the_time_goes(tmp_path):
    flags = ["--config=experiments/configs/auglocal_digits.py:smoke", "--config.duration=7 steps", "--profile"]
    done = program("train", *flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "profile" / "table.txt").read_text()
    assert text in done.stdout
    assert "|       block 3 |" in text
