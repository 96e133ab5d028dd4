"""Four devices against one: the same batch, the same numbers."""

import functools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.app.errors import UserError
from experiments.recipe.build import build
from jaxlocal import Batch, DataParallel, Network, Task, axis, fused, make_blocks, models, rules, streamed
from jaxlocal.executors import ONE_DEVICE
from tests import toy
from tests.programs import train
from tests.test_contract import ROWS, rows
from tests.test_programs import digits

# Their losses compare examples with each other, or draw noise: a device sees its own part.
OF_THE_PART = {"predsim", "composite", "noprop_dt", "noprop_ct", "noprop_fm"}


FOUR = DataParallel(jax.devices()[:4])


def on_four(t: toy.Toy, make=fused, dtype=jnp.float32, **options):
    return make(t.blocks, t.feed, toy.OPTIMIZER, dtype=dtype, placement=DataParallel(jax.devices()[:4], **options))


def parts(batch: Batch, placement=FOUR) -> Batch:
    rows = placement.positions(len(batch.label))
    return placement.spread(jax.tree.map(lambda x: np.asarray(x)[rows], batch), 0)


def trained(executor, batch: Batch, state=None, placement=FOUR):
    state = state or executor.init(jax.random.key(0), jax.tree.map(lambda x: x[:1], batch))
    batch = parts(batch, placement)
    for _ in range(2):
        state, metrics = executor.step(state, batch)
    return jax.device_get((state.blocks, metrics, executor.evaluate(state, batch)))


@pytest.mark.slow
@rows
def test_every_rule_on_four_devices(name):
    """Under pmap and shard_map, fused and streamed; with batch norm over the whole batch as on one device."""
    t = toy.make(ROWS[name][0])
    results = [
        trained(on_four(t, make, mapping=mapping, sync_batch_norm=True), t.batch)
        for make, mapping in ((fused, "pmap"), (fused, "shard_map"), (streamed, "pmap"))
    ]
    if name not in OF_THE_PART:
        results.append(trained(t.executor, t.batch, placement=ONE_DEVICE))
    for other in results[1:]:
        chex.assert_trees_all_close(other, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_device_and_four_differ_by_rounding_alone():
    """In float64: sums are taken in another order, and nothing else."""
    t = toy.make(rules.dgl())
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):

        def wide(tree):
            return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else x, tree)

        batch = wide(t.batch)
        one = fused(t.blocks, t.feed, toy.OPTIMIZER, dtype=jnp.float64)
        four = on_four(t, dtype=jnp.float64, sync_batch_norm=True)
        (blocks, *_), (expected, *_) = (
            trained(executor, batch, wide(toy.copy(t.state)), placement)
            for executor, placement in ((four, FOUR), (one, ONE_DEVICE))
        )
    assert {leaf.dtype for leaf in jax.tree.leaves(blocks)} == {np.dtype("float64")}
    chex.assert_trees_all_close(blocks, expected, rtol=1e-10, atol=1e-13)


def test_without_synchronisation_a_device_normalises_its_part():
    """Running statistics are the mean of the parts'; the variance of a part is smaller than the whole batch's."""
    t = toy.make(rules.greedy())
    normalised = []
    for sync in (True, False):
        state, _ = on_four(t, sync_batch_norm=sync).step(toy.copy(t.state), parts(t.batch))
        normalised.append(state.blocks[0].variables["batch_stats"]["unit_0"]["bn"])
    whole, of_parts = normalised
    np.testing.assert_allclose(of_parts["mean"], whole["mean"], rtol=1e-5, atol=1e-7)
    assert (of_parts["var"] < whole["var"]).all()


@pytest.mark.slow
def test_each_device_draws_its_own_noise():
    """Four equal parts: with one key they would drop the same features, and the mean would be a part's."""
    t = toy.make(toy.composite())
    quarter = jax.tree.map(lambda x: jnp.concatenate([x[:8]] * 4), t.batch)
    _, metrics, _ = trained(on_four(t), quarter)
    _, alone, _ = trained(t.executor, jax.tree.map(lambda x: x[:8], t.batch), placement=ONE_DEVICE)
    assert metrics[0]["loss"] != pytest.approx(alone[0]["loss"], rel=1e-6)


def test_a_batch_that_does_not_split_is_evaluated_whole():
    t = toy.make(rules.dgl())
    odd = jax.tree.map(lambda x: x[:7], t.batch)
    expected, found = (
        jax.device_get(e.evaluate(e.init(jax.random.key(0), odd), parts(odd, placement)))
        for e, placement in ((t.executor, ONE_DEVICE), (on_four(t), FOUR))
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_programs_are_of_one_device():
    """The compiler's analysis of a step on four devices is of a quarter of the batch."""
    t = toy.make(rules.greedy())
    flops = []
    for executor in (t.executor, on_four(t), on_four(t, streamed, mapping="shard_map")):
        programs = executor.programs(t.state, parts(t.batch, ONE_DEVICE if executor is t.executor else FOUR))
        flops.append(sum(p.times * p.flops() for p in programs))
    assert flops[1] == pytest.approx(flops[0] / 4, rel=0.1)
    assert flops[2] == pytest.approx(flops[0] / 4, rel=0.1)


def test_gradients_are_averaged_in_few_messages_and_no_copy():
    """Twelve small arrays are one of the operands; the large ones are not in memory once more."""
    units = models.mlp((1024,) * 6)
    network, local_rule = rules.backprop()(Network(units, ()), Task(10))
    blocks = make_blocks(network, local_rule)
    batch = Batch(jnp.zeros((16, 1024)), jnp.zeros(16, jnp.int32))
    make = functools.partial(fused, blocks, local_rule.feed, toy.OPTIMIZER)
    state = jax.eval_shape(make().init, jax.random.key(0), batch)
    temporaries = []
    for options in ({}, {"placement": DataParallel(jax.devices()[:4], "shard_map")}):
        executor = make(**options)
        (program,) = executor.programs(state, parts(batch, options.get("placement", ONE_DEVICE)))
        compiled = program.compile()
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
    sent = [line for line in program.lowered.as_text("hlo").splitlines() if " all-reduce(" in line]
    assert len(sent) == 7  # six matrices, and everything else
    gradient = 6 * 1024 * 1024 * 4
    assert temporaries[1] - temporaries[0] < 1.3 * gradient  # what is sent and what comes back


def test_the_mean_of_several_dtypes_and_sizes():
    """Whatever goes together: arrays come back to where they were."""
    tree = {
        "small": [jnp.arange(3.0), jnp.ones((2, 2), jnp.bfloat16)],
        "large": jnp.ones((600, 600)),
        "one": jnp.float16(2),
    }
    each = jax.tree.map(lambda x: jnp.stack([x * i for i in range(4)]).astype(x.dtype), tree)
    found = jax.pmap(lambda x: axis.mean_over(x, axis.DataAxis("data")), "data")(each)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, each)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[3], found), jax.tree.map(lambda x: (x * 1.5).astype(x.dtype), tree)
    )


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    config = digits(eval_every="2 steps", data_parallel=True, sync_batch_norm=True)
    whole = train(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    on_one = train(digits(eval_every="2 steps", sync_batch_norm=True), tmp_path)
    assert [(line["step"], line["split"]) for line in on_one.history] == [
        (line["step"], line["split"]) for line in whole.history
    ]
    for found, expected in zip(on_one.history, whole.history, strict=True):
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 30}, "batch_size 30 does not split evenly over 4 devices: choose a multiple of 4"),
        ({"seeds": 2}, "seeds 2 with data_parallel"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(UserError, match=message):
        build(digits(data_parallel=True, **changes))
