"""The contract of every rule. A new rule passes it by adding a row."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.training.checkpoint import Checkpoints
from jaxlocal import Batch, Network, Task, cut_everywhere, fused, make_blocks, models, rules, streamed
from jaxlocal import block as block_lib
from jaxlocal.executors.fused import train_step
from jaxlocal.variables import EMA, cast_floating, size, split
from tests import toy

NOPROP = models.noprop(2, width=0.1)
MLP = models.mlp((32, 24, 16))
VIT = models.vit(patch=2, layers=2, heads=2, features=8)
# name: (rule, blocks on the five-unit network, parameters with heads)
ROWS = {
    "backprop": (rules.backprop(), 1, 4818),
    "greedy": (rules.greedy(), 5, 5258),
    "dgl": (rules.dgl(), 5, 12250),
    "auglocal": (rules.auglocal(depth=2), 3, 10454),
    "predsim": (rules.predsim(), 5, 22682),
    "infopro": (rules.infopro(), 5, 33278),
    "lopt": (toy.on(VIT, rules.lopt()), 2, 1874),
    "man": (rules.man(rules.greedy(), scale=True), 5, 9902),
    "remat": (rules.remat(rules.greedy()), 5, 5258),
    "shared": (toy.on(VIT, rules.shared(rules.greedy())), 3, 1832),
    "tpsgd": (rules.tpsgd(), 5, 4818),
    "adapt": (toy.on(models.mlp((64, 48), "tanh"), rules.adapt(rules.greedy())), 2, 14164),
    "drtp": (rules.drtp(), 5, 4818),
    "dfa": (rules.dfa(), 1, 4818),
    "forward_forward": (toy.on(MLP, rules.forward_forward()), 3, 3992),
    "mono_forward": (rules.mono_forward(), 5, 19368),
    "noprop_dt": (toy.on(NOPROP, rules.noprop_dt(eta=1.0, offset=0.3)), 3, 11408),
    "noprop_ct": (toy.on(NOPROP, rules.noprop_ct(eta=0.1, end=2.0, steps=3)), 1, 7927),
    "noprop_fm": (toy.on(NOPROP, rules.noprop_fm(steps=3)), 1, 7625),
    "deep_supervision": (rules.deep_supervision(rules.greedy()), 1, 5258),
    "composite": (toy.composite(), 5, 5258),  # not a rule of the library: every combinator at once
}


rows = pytest.mark.parametrize("name", ROWS)


@pytest.fixture(autouse=True)
def _promotion(request):
    """Flax's layer norm and JAX's attention mix bfloat16 with float32."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    with jax.numpy_dtype_promotion("standard" if name in ("shared", "lopt") else "strict"):
        yield


@pytest.mark.slow
@rows
def test_loss_of_every_block_falls(name):
    t = toy.make(ROWS[name][0])
    state, first = t.executor.step(t.state, t.batch)
    for _ in range(100):
        state, last = t.executor.step(state, t.batch)
    for before, after in zip(first, last, strict=True):
        assert after["loss"] < 0.9 * before["loss"]


@pytest.mark.slow
@rows
def test_executors_agree(name):
    """Two steps and an evaluation: all blocks in one program, one program each, and with states in host memory."""
    t = toy.make(ROWS[name][0])
    one_image = jax.tree.map(lambda x: x[:1], t.batch)
    results = []
    for offload in (None, False, True):
        executor = t.executor if offload is None else streamed(t.blocks, t.feed, toy.OPTIMIZER, offload=offload)
        state = executor.init(jax.random.key(0), one_image)
        for _ in range(2):
            state, metrics = executor.step(state, t.batch)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.blocks)}
        assert kinds == ({"pinned_host"} if offload else {"device"})
        results.append((state.blocks, metrics, executor.evaluate(state, t.batch)))
    for other in results[1:]:
        chex.assert_trees_all_close(other, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@rows
def test_traces_once(name):
    t = toy.make(ROWS[name][0])
    chex.clear_trace_counter()
    step = jax.jit(
        chex.assert_max_traces(n=1)(lambda state, batch: train_step(t.blocks, t.feed, toy.OPTIMIZER, state, batch))
    )
    state = t.state
    for _ in range(3):
        state, _ = step(state, t.batch)
    assert state.step == 3


@rows
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_state_keeps_structure_shapes_and_dtypes(name, dtype):
    t = toy.make(ROWS[name][0], dtype=dtype)
    before = jax.eval_shape(lambda: t.state)
    after, metrics = t.executor.step(t.state, t.batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, jax.eval_shape(lambda: after))
    chex.assert_tree_all_finite((after.blocks, metrics))
    for leaf in jax.tree.leaves(after.blocks):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def noisy_digits(n: int) -> Batch:
    """Digits of 32x32 pixels with noise, ``[n, 32, 32, 1]``."""
    small = toy.digits(n)
    noise = 0.3 * jax.random.normal(jax.random.key(0), (n, 32, 32, 1))
    image, pixels = (jax.image.resize(x, noise.shape, "cubic") for x in (small.input, small.pixels))
    return Batch(image + noise, small.label, jnp.clip(pixels + 0.3 * noise, 0, 1))


def realistic(name: str):
    """A row at a realistic size; heads of later units need a later unit more."""
    features = (16, 16, 24, 24) if name == "auglocal" else (16, 16, 24)
    return pytest.param(name, features, 64, marks=pytest.mark.slow)


def rounded(tree):
    """Floating leaves to bfloat16's eight bits, in the dtype that they have."""
    half = cast_floating(tree, jnp.bfloat16)
    return jax.tree.map(lambda x, y: y.astype(x.dtype), tree, half)


@pytest.mark.parametrize(
    ("name", "features", "n"),
    [("man", (4, 4), 8)] + [realistic(name) for name in ROWS],
)
def test_bfloat16_gradients_are_those_of_float32(name, features, n):
    """Of every tensor, given the same input: to 15%, and losses to two digits.

    Gradients are sums over up to n x 32 x 32 terms. Accumulated in bfloat16 they stop growing after some hundred
    terms, and are nothing like the right ones. Where the gradient is so sensitive that rounding input and parameters
    changes it much, computed in float32 (dense layers under batch norm over few examples), it may differ by twice
    that more. One that is zero but for rounding, as that of a bias in front of batch norm, may by a thousandth of
    the block's.
    """
    units = models.convnet(features, (1, 2, 1, 1)[: len(features)])
    network, local_rule = ROWS[name][0](Network(units, cut_everywhere(units)), Task(10))
    blocks = make_blocks(network, local_rule)
    batch = noisy_digits(n)
    example = jax.tree.map(lambda x: x[:1], batch)
    state = fused(blocks, local_rule.feed, toy.OPTIMIZER).init(jax.random.key(0), example)
    gradients = jax.jit(block_lib.gradients, static_argnames=("block", "dtype"))
    carry, key = None, jax.random.key(0)
    for i, (block, own) in enumerate(zip(blocks, state.blocks, strict=True)):
        carry = local_rule.feed(i, carry, batch, key, train=True)
        full, output, out = gradients(block, own.variables, carry, batch, key, dtype=jnp.float32)
        half, _, out_of_half = gradients(block, own.variables, carry, batch, key, dtype=jnp.bfloat16)
        params, rest = split(own.variables)
        alone, _, _ = gradients(
            block, {**rest, "params": rounded(params)}, rounded(carry), batch, key, dtype=jnp.float32
        )
        np.testing.assert_allclose(out_of_half.loss, out.loss, rtol=0.02)
        assert out_of_half.loss != out.loss
        norm = jnp.linalg.norm(ravel_pytree(full)[0])
        leaves = (jax.tree_util.tree_leaves_with_path(full), *map(jax.tree.leaves, (half, alone)))
        for (path, a), b, c in zip(*leaves, strict=True):
            most = max(0.15 * jnp.linalg.norm(a) + 2 * jnp.linalg.norm(c - a), 1e-3 * norm)
            assert jnp.linalg.norm(b - a) <= most, f"block {i}: {jax.tree_util.keystr(path)}"
        carry = output


@rows
def test_checkpoint_round_trip(name, tmp_path: Path):
    t = toy.make(ROWS[name][0])
    state, _ = t.executor.step(t.state, t.batch)
    checkpoints = Checkpoints(tmp_path)
    going_on = toy.copy(state)
    checkpoints.save(1, going_on, 0.5)
    for _ in range(3):  # donates what is still being written
        going_on, _ = t.executor.step(going_on, t.batch)
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore(1, toy.make(ROWS[name][0], seed=1).state)
    chex.assert_trees_all_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))
    chex.assert_trees_all_equal(restored.blocks, state.blocks)
    assert restored.step == 1


@pytest.mark.slow
@rows
def test_vmap_over_seeds(name):
    t = toy.make(ROWS[name][0])
    example = jax.tree.map(lambda x: x[:1], t.batch)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: t.executor.init(key, example))(keys)
    step = jax.jit(jax.vmap(lambda state, batch: train_step(t.blocks, t.feed, toy.OPTIMIZER, state, batch), (0, None)))
    _, metrics = step(states, t.batch)
    assert len({float(x) for x in metrics[-1]["loss"]}) == 3


def updated(blocks):
    """Blocks without what looks at peers on purpose: MAN's averages follow the next block after the update."""
    return [({c: t for c, t in b.variables.items() if c != EMA}, b.opt_state) for b in blocks]


@rows
def test_a_later_block_never_changes_an_earlier_update(name):
    """Perturbing block j leaves the updates of all blocks i < j bitwise unchanged."""
    t = toy.make(ROWS[name][0])
    clean, _ = t.executor.step(toy.copy(t.state), t.batch)
    for j in range(1, len(t.blocks)):
        blocks = list(toy.copy(t.state).blocks)
        blocks[j] = jax.tree.map(lambda x: x + jnp.ones_like(x), blocks[j])
        perturbed, _ = t.executor.step(toy.copy(t.state).replace(blocks=tuple(blocks)), t.batch)
        chex.assert_trees_all_equal(updated(perturbed.blocks[:j]), updated(clean.blocks[:j]))
        with pytest.raises(AssertionError):  # the perturbation itself was seen
            chex.assert_trees_all_equal(perturbed.blocks[j], clean.blocks[j])


@rows
def test_every_exit_is_evaluated(name):
    t = toy.make(ROWS[name][0])
    exits = t.executor.evaluate(t.state, t.batch)
    assert len(exits) == ROWS[name][1]
    assert all(jnp.isfinite(block["loss"]) for block in exits)
    for block in exits[-1:] if name == "lopt" else exits:  # its other blocks predict nothing
        assert 0 <= block["accuracy"] <= 1


@rows
def test_number_of_parameters(name):
    t = toy.make(ROWS[name][0])
    assert size([block.variables["params"] for block in t.state.blocks]) == ROWS[name][2], (
        "the rule's heads have changed size: did you mean to change this?"
    )


def test_every_rule_has_a_row_and_a_page():
    pages = {path.stem for path in (Path(__file__).parent.parent / "docs" / "rules").glob("*.md")}
    assert not set(rules.__all__) - ROWS.keys(), "give these rules a row above"
    files = {getattr(rules, name).__module__.split(".")[-1].removesuffix("_continuous") for name in rules.__all__}
    assert not files - pages, "give these rules a page in docs/rules"
