"""NNX modules as units: under every rule they train, run along, drop out, and are saved as Linen's do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.training.checkpoint import Checkpoints
from jaxlocal import Network, Task, cut_everywhere, fused, make_blocks, rules, streamed
from jaxlocal.bridge import nnx_unit
from jaxlocal.network import strides_of, with_strides, with_width
from jaxlocal.variables import apply_module, init_module, size
from tests import toy


class Convolution(nnx.Module):
    """A convolution, a norm, dropout and layers in a list; a variable and an array that stay what they are."""

    def __init__(self, in_features, features, strides=1, *, rngs):
        self.conv = nnx.Conv(in_features, features, (3, 3), strides=strides, rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(features, features, rngs=rngs)])
        self.table = nnx.Variable(jax.random.normal(rngs.params(), (features,)))
        self.offset = np.full((features,), 0.1, np.float32)

    def __call__(self, x):
        x = self.dropout(self.norm(self.conv(x))) + self.table + self.offset
        return nnx.relu(self.layers[0](nnx.relu(x)))


UNITS = tuple(nnx_unit(Convolution, features=f, strides=s) for f, s in ((4, 1), (4, 2), (6, 1)))
RULES = {
    "backprop": rules.backprop(),
    "deep_supervision": rules.deep_supervision(rules.greedy()),
    "remat": rules.remat(rules.greedy()),
    "greedy": rules.greedy(),
    "dgl": rules.dgl(),
    "auglocal": rules.auglocal(depth=1, width=0.5),
    "man": rules.man(rules.greedy(), scale=True),
    "predsim": rules.predsim(),
    "infopro": rules.infopro(),
    "tpsgd": rules.tpsgd(),
    "drtp": rules.drtp(),
    "dfa": rules.dfa(),
    "adapt": rules.adapt(rules.greedy()),
}


def statistics(state):
    return [block.variables.get("batch_stats", {}) for block in state.blocks]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name != "greedy" else name for name in RULES]
)
def test_a_rule_trains_nnx_units(name, tmp_path):
    network, local_rule = RULES[name](Network(UNITS, cut_everywhere(UNITS)), Task(10))
    blocks, batch = make_blocks(network, local_rule), toy.digits()
    executors = [make(blocks, local_rule.feed, toy.OPTIMIZER) for make in (fused, streamed)]
    results = []
    for executor in executors:
        state = executor.init(jax.random.key(0), jax.tree.map(lambda x: x[:1], batch))
        start = toy.copy(state)
        for _ in range(2):
            state, metrics = executor.step(state, batch)
        results.append((state.blocks, metrics, executor.evaluate(state, batch)))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)
    kinds = {collection for block in state.blocks for collection in block.variables}
    assert kinds - {"ema"} == ({"params", "fixed"} if name == "adapt" else {"params", "fixed", "batch_stats"})
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state.blocks))  # and no key
    if name != "adapt":
        for before, after in zip(statistics(start), statistics(state), strict=True):
            assert all(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    for before, after in zip(start.blocks, state.blocks, strict=True):
        chex.assert_trees_all_equal(before.variables.get("fixed", {}), after.variables.get("fixed", {}))
        assert not np.array_equal(
            *(np.concatenate([x.ravel() for x in jax.tree.leaves(b.variables["params"])]) for b in (before, after))
        )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, 0.5)
    restored = checkpoints.restore(2, start)
    checkpoints.close()
    chex.assert_trees_all_equal(restored.blocks, state.blocks)
    chex.assert_trees_all_equal(executors[0].evaluate(restored, batch), results[0][2])


@pytest.mark.slow
def test_it_computes_in_bfloat16():
    network, local_rule = rules.dgl()(Network(UNITS, cut_everywhere(UNITS)), Task(10))
    executor = fused(make_blocks(network, local_rule), local_rule.feed, toy.OPTIMIZER, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # as programs have it: NNX mixes a norm's dtypes
        state = executor.init(jax.random.key(0), toy.digits())
        state, metrics = executor.step(state, toy.digits())
    chex.assert_tree_all_finite((state.blocks, metrics))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.blocks)} == {jnp.dtype(jnp.float32)}


def test_training_and_evaluation():
    unit, x = UNITS[0], jax.random.normal(jax.random.key(3), (8, 4, 4, 2))
    y, variables = init_module(unit, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables["batch_stats"]) == {"norm": {"mean": (4,), "var": (4,)}}
    assert set(variables["fixed"]) == {"table", "offset"}
    assert size(variables["params"]) == 9 * 2 * 4 + 4 + 2 * 4 + 4 * 4 + 4
    again, none = apply_module(unit, variables, x, jax.random.key(5), train=False)
    np.testing.assert_array_equal(again, y)
    assert none == {}
    one, mutated = apply_module(unit, variables, x, jax.random.key(1), train=True)
    two, _ = apply_module(unit, variables, x, jax.random.key(2), train=True)
    same, _ = apply_module(unit, variables, x, jax.random.key(1), train=True)
    assert not np.allclose(one, two)
    np.testing.assert_array_equal(one, same)
    module = Convolution(2, 4, rngs=nnx.Rngs(0))  # by NNX itself: the same parameters, the same batch
    nnx.update(module, nnx.State({"conv": nnx.State(variables["params"]["conv"])}))
    module.norm(module.conv(x))
    np.testing.assert_allclose(mutated["batch_stats"]["norm"]["mean"], module.norm.mean[...], rtol=1e-5, atol=1e-6)


def test_a_unit_is_a_spec():
    unit = nnx_unit(Convolution, 2, 4)
    assert unit == nnx_unit(Convolution, features=4, in_features=2, strides=1) == unit.clone()
    assert hash(unit) == hash(nnx_unit(Convolution, 2, 4))
    assert unit != nnx_unit(Convolution, 2, 4, 2)
    assert strides_of(with_strides(unit, 2)) == 2
    assert with_width(unit, 0.5).features == 2
    with pytest.raises(ValueError, match=r"asked of Linear, which has no field `strides`"):
        with_strides(nnx_unit(nnx.Linear, 2, 3), 2)


class Counter(nnx.Module):
    def __init__(self):
        self.seen = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.seen.set_value(self.seen.get_value() + 1)
        return x


class Plain(nnx.Module):
    def __init__(self):
        self.offset = jnp.ones(2)


class Moded(nnx.Module):
    def __call__(self, x, *, train):
        return x if train else -x


def test_a_module_that_asks_is_told():
    variables = init_module(nnx_unit(Moded), jax.random.key(0), jnp.ones(3))[1]
    for train in (True, False):
        y, _ = apply_module(nnx_unit(Moded), variables, jnp.ones(3), jax.random.key(0), train=train)
        assert y[0] == (1 if train else -1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nnx_unit(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), "is built holds parameters, units do not: give its cl"),
        (
            lambda: nnx_unit(nnx.Sequential, nnx.Linear(2, 3, rngs=nnx.Rngs(0))),
            r"nnx_unit\(Sequential\): a module that",
        ),
        (lambda: nnx_unit(nnx.Linear, 2, 3, rngs=nnx.Rngs(0)), r"nnx_unit\(Linear\): rngs given; leave it out"),
        (lambda: nnx_unit("Linear"), "'Linear'.*: give a class of NNX modules"),
        (
            lambda: nnx_unit(Convolution),
            r"nnx_unit\(Convolution\): no features given; it takes \(in_features, features",
        ),
        (lambda: nnx_unit(Convolution, width=3), "got an unexpected keyword argument 'width'; it takes"),
        (lambda: nnx_unit(nnx.Linear, 2, out_features=jnp.ones(3)), "unhashable.*give tuples and numbers, no arrays"),
    ],
)
def test_what_is_no_spec_is_refused(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (nnx_unit(Convolution, 3, 4), r"unit Convolution cannot read an input of shape \(1, 4, 4, 2\): "),
        (
            nnx_unit(Plain),
            r"Plain\.offset is a plain array, which NNX takes for a constant .*: make it an nnx\.Variable",
        ),
        (nnx_unit(lambda: 3), r"unit <lambda> .*: it builds a int, not an NNX module"),
    ],
)
def test_an_input_that_does_not_fit_is_one_line(unit, words):
    with pytest.raises(ValueError, match=words):
        init_module(unit, jax.random.key(0), jnp.ones((1, 4, 4, 2)))


def test_what_changes_in_secret_is_refused():
    variables = init_module(nnx_unit(Counter), jax.random.key(0), jnp.ones(3))[1]
    with pytest.raises(ValueError, match=r"unit Counter changes seen as it computes: only an nnx\.BatchStat may run"):
        apply_module(nnx_unit(Counter), variables, jnp.ones(3), jax.random.key(0), train=True)
