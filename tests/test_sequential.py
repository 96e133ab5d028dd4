"""A Sequential, of Linen or of NNX, cut into units: computes what it computed, and trains in blocks."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from jaxlocal import Network, Task, cut_everywhere, fused, make_blocks, models, rules
from jaxlocal.network import kind_of, strides_of, with_strides, with_width
from jaxlocal.sequential import Layers, units_of
from jaxlocal.variables import apply_module, init_module
from tests import toy


def mean(x):
    return x.mean((1, 2))


LINEN = nn.Sequential(
    [
        lambda x: x / 2,
        nn.Conv(4, (3, 3), strides=(2, 2)),
        nn.BatchNorm(momentum=0.9),
        nn.relu,
        nn.Dropout(0.2),
        nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(6, (3, 3), strides=2)]),
        mean,
        models.DenseUnit(8),
        nn.Dense(10),
    ]
)


def of_nnx(rngs):
    return nnx.Sequential(
        lambda x: x / 2,
        nnx.Conv(1, 4, (3, 3), rngs=rngs),
        nnx.BatchNorm(4, momentum=0.9, rngs=rngs),
        nnx.relu,
        nnx.Dropout(0.2, rngs=rngs),
        nnx.Conv(4, 6, (3, 3), rngs=rngs),
        mean,
        nnx.Linear(6, 10, rngs=rngs),
    )


def run(units, x, *, train=False):
    """The output, each unit's variables, and its statistics."""
    variables, mutated = [], []
    for unit in units:
        variables.append(init_module(unit, jax.random.key(0), x)[1])
        x, new = apply_module(unit, variables[-1], x, jax.random.key(1), train=train)
        mutated.append(new)
    return x, variables, mutated


def test_linen_is_cut_before_each_layer():
    units = units_of(LINEN, answers=True)
    assert [len(getattr(unit, "layers", "one")) for unit in units] == [5, 2, 3, 1]
    assert units[2] == models.DenseUnit(8)  # that is a unit already
    assert units == units_of(LINEN, answers=True)
    assert not units_of(LINEN)[-1].answers
    x = toy.digits().input
    y, variables, _ = run(units, x)
    params = [v["params"] for v in variables]
    whole = {
        "layers_1": params[0]["layers_1"],
        "layers_2": params[0]["layers_2"],
        "layers_5": params[1]["layers_0"],
        "layers_8": params[3]["layers_0"],
    }
    first = nn.Sequential(
        [*LINEN.layers[:2], nn.BatchNorm(use_running_average=True), nn.relu, lambda x: x, *LINEN.layers[5:7]]
    )
    expected = first.apply({"params": whole, "batch_stats": {"layers_2": variables[0]["batch_stats"]["layers_2"]}}, x)
    expected = nn.Dense(10).apply(
        {"params": whole["layers_8"]}, models.DenseUnit(8).apply({"params": params[2]}, expected, train=False)
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sequential", [LINEN, of_nnx], ids=["linen", "nnx"])
def test_statistics_run_along_and_dropout_is_of_training(sequential):
    units, x = units_of(sequential), toy.digits().input
    one, _, none = run(units, x)
    np.testing.assert_array_equal(one, run(units, x)[0])
    assert not any(none)
    two, _, mutated = run(units, x, train=True)
    assert not np.allclose(one, two)
    assert len(jax.tree.leaves(mutated[0])) == 2
    assert not any(map(jax.tree.leaves, mutated[1:]))


@pytest.mark.parametrize("sequential", [LINEN, of_nnx], ids=["linen", "nnx"])
def test_it_trains_in_blocks(sequential):
    units = units_of(sequential, answers=True)
    network, local_rule = rules.greedy()(Network(units, cut_everywhere(units)), Task(10))
    blocks, batch = make_blocks(network, local_rule), toy.digits()
    executor = fused(blocks, local_rule.feed, toy.OPTIMIZER)
    state = executor.init(jax.random.key(0), batch)
    assert "head" not in state.blocks[-1].variables["params"]  # the last layer answers
    state, first = executor.step(state, batch)
    for _ in range(30):
        state, last = executor.step(state, batch)
    assert all(after["loss"] < before["loss"] for before, after in zip(first, last, strict=True))


def test_nnx_is_cut_before_each_layer():
    units, x = units_of(of_nnx), toy.digits().input
    y, variables, _ = run(units, x)
    assert [set(v["params"]["layers"]) for v in variables] == [{"1", "2"}, {"0"}, {"0"}]
    module = of_nnx(nnx.Rngs(0))
    for i, (unit, place) in enumerate(((0, "1"), (1, "0"), (2, "0"))):
        layer = module.layers[(1, 5, 7)[i]]
        for name, value in variables[unit]["params"]["layers"][place].items():
            setattr(layer, name, nnx.Param(value))
    module.eval()
    np.testing.assert_allclose(y, module(x), rtol=1e-5, atol=1e-6)
    assert units == units_of(of_nnx)
    assert hash(units) == hash(units_of(of_nnx))


def test_rules_read_strides_and_features_off_the_layers():
    first, stage, dense, _ = units_of(LINEN)
    assert [strides_of(unit) for unit in (first, stage, dense)] == [2, 2, 1]
    assert (first.features, stage.features) == (4, 6)
    assert strides_of(with_strides(stage, 1)) == 1
    assert with_width(stage, 0.5).layers[0].layers[2].features == 3
    assert not hasattr(Layers((nn.Dense(3),)), "strides")
    assert [kind_of(unit) for unit in (first, stage, dense)] == ["Conv", "Conv", "DenseUnit"]
    assert [kind_of(unit) for unit in units_of(of_nnx)] == ["layers 0-4", "layers 5-6", "layers 7-7"]


def test_auglocal_copies_them():
    units = units_of(nn.Sequential([x for f in (4, 4, 6, 6) for x in (nn.Conv(f, (3, 3), strides=2), nn.relu)]))
    network, local_rule = rules.auglocal(depth=1)(Network(units, cut_everywhere(units)), Task(10))
    executor = fused(make_blocks(network, local_rule), local_rule.feed, toy.OPTIMIZER)
    batch = toy.digits()
    _, metrics = executor.step(executor.init(jax.random.key(0), batch), batch)
    assert len(metrics) == 3


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return x


SHARED = nn.Dense(4)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (nn.Dense(3), TypeError, r"units_of: Dense given: an nn\.Sequential, or a function that builds an nnx\.Seq"),
        (nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), TypeError, r"built holds parameters.*lambda rngs: nnx\.S"),
        (lambda rngs: nnx.Linear(2, 3, rngs=rngs), TypeError, r"builds a Linear, not an nnx\.Sequential"),
        (nn.Sequential([]), ValueError, "of 0 layers none has parameters"),
        (nn.Sequential([nn.relu]), ValueError, "of 1 layers none has parameters"),
        (nn.Sequential([nn.Dense]), TypeError, "layer 0 is .*Dense.*: give a module, not its class"),
        (nn.Sequential([nn.Dense(3), 4]), TypeError, "layer 1 is 4: give a module"),
        (nn.Sequential([nn.Dense(3), TwoInputs()]), TypeError, "layer 1, TwoInputs, needs mask beside its input: wrap"),
        (nn.Sequential([SHARED, nn.relu, SHARED]), ValueError, "layer 2 is an earlier one again: a cut would break"),
        (nn.Sequential([nnx.Linear(2, 3, rngs=nnx.Rngs(0))]), TypeError, "layer 0 is a Linear of NNX that is built"),
        (lambda rngs: nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), 4), TypeError, "layer 1 is 4: give a module"),
    ],
)
def test_what_cannot_be_cut_is_one_line(given, error, words):
    with pytest.raises(error, match=words):
        units_of(given)
