"""MAN: what the averages are, where the heads sit, what the gradient reaches."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Network, Task, block, cut_everywhere, fused, make_blocks, models, rules
from jaxlocal.executors.fused import train_step
from jaxlocal.rules.man import MomentumAuxiliary
from jaxlocal.variables import EMA, size
from tests import toy


def average(state, i):
    return state.blocks[i].variables["ema"]["head"]["adapter"]["average"]


def next_unit(state, i):
    return state.blocks[i + 1].variables["params"]["unit_0"]


def test_averages_start_from_the_next_unit():
    state = toy.make(rules.man(rules.dgl())).state
    for i in range(4):
        chex.assert_trees_all_equal(average(state, i), next_unit(state, i))


def test_averages_may_start_from_a_draw_of_their_own():
    state = toy.make(rules.man(rules.dgl(), start="independent")).state
    chex.assert_trees_all_equal_shapes(average(state, 0), next_unit(state, 0))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(average(state, 0), next_unit(state, 0), rtol=0.1)


def test_averages_follow_the_parameters_before_the_update():
    t = toy.make(rules.man(rules.dgl(), 0.9, start="independent"))
    before = toy.copy(t.state)
    after, _ = t.executor.step(t.state, t.batch)
    for i in range(4):
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, average(before, i), next_unit(before, i))
        chex.assert_trees_all_close(average(after, i), expected, rtol=1e-5, atol=1e-7)


def test_a_decay_of_one_keeps_the_averages():
    t = toy.make(rules.man(rules.dgl(), 1.0))
    start = jax.tree.map(np.asarray, average(t.state, 0))
    state = t.state
    for _ in range(3):
        state, _ = t.executor.step(state, t.batch)
    chex.assert_trees_all_close(average(state, 0), start, rtol=1e-6)


def test_the_average_takes_no_gradient_but_lets_it_through():
    t = toy.make(rules.man(rules.greedy(), bias=False))
    state = t.state.blocks[0]
    gradient, _, _ = block.gradients(
        t.blocks[0], state.variables, t.batch.input, t.batch, jax.random.key(0), dtype=jnp.float32
    )
    assert gradient.keys() == {"unit_0", "head"}
    assert gradient["head"].keys() == {"inner"}  # nothing of the adapter trains
    assert min(jnp.linalg.norm(x) for x in jax.tree.leaves(gradient["unit_0"])) > 0


@pytest.mark.parametrize("option", ["bias", "ema"])
def test_one_of_the_two_terms_alone(option):
    """The paper's ablation: without the other term, the feature is the unit itself."""
    t = toy.make(rules.man(rules.greedy(), **{option: False}))
    head = t.state.blocks[1].variables["params"]["head"]
    assert ("adapter" in head) == (option == "ema")
    assert ("ema" in t.state.blocks[1].variables) == (option == "bias")


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_the_feature_is_the_weighted_sum_of_bias_and_average(scale):
    unit = models.ConvUnit(3)
    adapter = MomentumAuxiliary(unit, scale=scale is not None)
    x = toy.digits().input
    variables = adapter.init(jax.random.key(0), x, train=False)
    average = {"params": variables[EMA]["average"], "batch_stats": variables["batch_stats"]["average"]}
    bias = {c: variables[c]["unit"] for c in ("params", "batch_stats")}
    terms = [unit.apply(v, x, train=True, mutable=["batch_stats"]) for v in (bias, average)]
    if scale is not None:
        variables = {**variables, "params": {**variables["params"], "scale": jnp.array(scale)}}
    y, mutated = adapter.apply(variables, x, train=True, mutable=["batch_stats"])
    s = 1.0 if scale is None else scale
    chex.assert_trees_all_close(y, s * terms[0][0] + (2 - s) * terms[1][0], rtol=1e-5, atol=1e-6)
    for name, (_, expected) in zip(("unit", "average"), terms, strict=True):
        chex.assert_trees_all_close(mutated["batch_stats"][name], expected["batch_stats"], rtol=1e-6)


def test_the_gradient_of_the_scale_is_summed_in_float32():
    """It is the difference of two sums over all outputs, here of 65536 twos and 65536 ones."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return self.param("factor", nn.initializers.constant(2.0), ()).astype(x.dtype) * x

    adapter, x = MomentumAuxiliary(Twice(), scale=True), jnp.ones((64, 1024), jnp.bfloat16)
    variables = adapter.init(jax.random.key(0), x, train=False)
    variables = {**variables, EMA: {"average": {"factor": jnp.ones(())}}}
    variables = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables)
    gradient = jax.grad(lambda v: jnp.sum(adapter.apply(v, x, train=True), dtype=jnp.float32))(variables)
    assert gradient["params"]["scale"] == 65536


def test_heads_read_the_next_units_width():
    units = models.convnet((4, 6, 10), (1, 2, 1))
    network, local_rule = rules.man(rules.greedy())(Network(units, cut_everywhere(units)), Task(7))
    assert network.cuts == (1, 2)
    blocks = make_blocks(network, local_rule)
    x = jnp.ones((2, 8, 8, 4))
    variables = blocks[0].objective.init(jax.random.key(0), x, toy.digits())
    assert variables["params"]["inner"]["dense"]["kernel"].shape == (6, 7)


def test_auglocal_selects_from_the_next_unit():
    """Under MAN a head of AugLocal copies the units behind the one that LB and EMA copy."""
    units = models.convnet((4, 5, 6, 7, 8), (1, 1, 1, 1, 1))
    network, local_rule = rules.man(rules.auglocal(depth=2))(Network(units, (1, 2, 3, 4)), Task(3))
    assert network.cuts == (1, 2)
    variables = local_rule.objectives[0].init(jax.random.key(0), jnp.ones((2, 4, 4, 4)), toy.digits())
    inner = variables["params"]["inner"]
    widths = [inner[f"units_{j}"]["conv"]["kernel"].shape[-1] for j in range(2)]
    assert widths == [6, 8]  # units 2 and 4: round(1 + 1.5 j)


def test_it_goes_around_dense_layers_without_running_statistics():
    units = models.mlp((8, 6, 4))
    network, local_rule = rules.man(rules.greedy(), 0.5)(Network(units, cut_everywhere(units)), Task(10))
    blocks = make_blocks(network, local_rule)
    batch = toy.digits()
    before = fused(blocks, local_rule.feed, toy.OPTIMIZER).init(jax.random.key(0), batch)
    after, _ = train_step(blocks, local_rule.feed, toy.OPTIMIZER, before, batch)
    after, _ = train_step(blocks, local_rule.feed, toy.OPTIMIZER, after, batch)
    kernels = [average(state, 0)["dense"]["kernel"] for state in (before, after)]
    assert kernels[0].shape == (8, 6)
    assert jnp.abs(kernels[1] - kernels[0]).max() > 0


def test_without_a_cut_it_is_backprop():
    wrapped, plain = toy.make(rules.man(rules.backprop())), toy.make(rules.backprop())
    assert size(wrapped.state.blocks) == size(plain.state.blocks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.5}, "decay 1.5 given"),
        ({"start": "later"}, "start 'later' given"),
        ({"bias": False, "ema": False}, "keep one"),
        ({"bias": False, "scale": True}, "both under a scale"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        rules.man(rules.dgl(), **options)
