"""AugLocal's selection and depth formulas, against the authors' code and by their properties."""

import json
from itertools import pairwise
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlocal import Network, Task, cut_everywhere, models
from jaxlocal.network import strides_of, with_width
from jaxlocal.rules.auglocal import auglocal, auxiliary_head, depth_schedule, select_units

GOLDEN = json.loads((Path(__file__).parent / "golden" / "auglocal_selection.json").read_text())


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda e: f"{e['arch']}-d{e['d']}-tau{e['pyramid_coeff']}")
def test_depths_and_selections_are_the_authors(entry):
    depths = depth_schedule(entry["d"], entry["local_modules"], entry["pyramid_coeff"])
    assert list(depths) == entry["depth_per_block"]
    selected = [list(select_units(i, entry["units"], d)) for i, d in enumerate(depths)]
    assert selected == entry["selected_units"]


@given(st.integers(2, 80), st.data())
def test_a_selection_is_later_units_ending_in_the_last(n, data):
    last = data.draw(st.integers(0, n - 2))
    depth = data.draw(st.integers(1, n))
    selected = select_units(last, n, depth)
    assert len(selected) == min(depth, n - 1 - last)
    assert list(selected) == sorted(set(selected))
    assert last < selected[0]
    assert selected[-1] == n - 1


@given(st.integers(1, 30), st.integers(2, 60), st.floats(0, 1))
def test_depths_shrink_from_d(depth, num_blocks, tau):
    depths = depth_schedule(depth, num_blocks, tau)
    assert len(depths) == num_blocks - 1
    assert depths[0] == depth
    assert all(1 <= b <= a for a, b in pairwise(depths))
    if tau == 0:
        assert set(depths) == {depth}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([1, 1, 2]), min_size=4, max_size=9), st.data())
def test_heads_fit_any_network(strides, data):
    """A head reads classes off its unit, is as wide as the units it copies, and never pools below the network's end."""
    units = models.convnet(tuple(range(3, 3 + len(strides))), tuple(strides))
    depth = data.draw(st.integers(1, len(units) - 2))
    network, _ = auglocal(depth)(Network(units, cut_everywhere(units)), Task(7))
    assert network.cuts == cut_everywhere(units)[: len(units) - depth - 1]
    for cut in network.cuts:
        head = auxiliary_head(network, cut - 1, depth, Task(7))
        assert [u.features for u in head.units] == [units[i].features for i in select_units(cut - 1, len(units), depth)]
        later = 1
        for unit in units[cut:]:
            later *= strides_of(unit)
        own = 1
        for unit in head.units:
            own *= strides_of(unit)
        assert own <= later
        logits = jax.eval_shape(
            lambda head=head: head.init_with_output(jax.random.key(0), jnp.zeros((2, 64, 64, 3)), train=False)[0]
        )
        assert logits.shape == (2, 7)


def test_crossings_are_spread_over_the_copies():
    """From 16 channels straight to the last stage: the first copy has the width, the second catches up."""
    units = models.resnet(32)
    network = Network(units, cut_everywhere(units))
    strides = {depth: [u.strides for u in auxiliary_head(network, 5, depth, Task(10)).units] for depth in (1, 2, 3)}
    assert strides == {1: [2], 2: [2, 2], 3: [2, 2, 1]}
    assert [u.features for u in auxiliary_head(network, 5, 2, Task(10)).units] == [32, 64]


def test_width_scales_the_copies_and_asks_for_features():
    units = models.convnet((4, 6, 8), (1, 1, 1))
    head = auxiliary_head(Network(units), 0, 2, Task(10), width=1.5)
    assert [unit.features for unit in head.units] == [9, 12]
    with pytest.raises(ValueError, match="Dropout, which has no field `features`"):
        with_width(nn.Dropout(0.5), 2.0)


def test_heads_of_one_unit_have_a_batch_norm():
    units = models.resnet(20)
    network = Network(units, cut_everywhere(units))
    assert auxiliary_head(network, 0, 1, Task(10)).norm
    assert not auxiliary_head(network, 0, 2, Task(10)).norm


def test_coarse_cuts_keep_blocks_of_several_units():
    units = models.resnet(32)
    network, rule = auglocal(2)(Network(units, (2, 4, 6, 8, 10, 12)), Task(10))
    assert network.cuts == (2, 4, 6, 8)
    assert len(rule.objectives) == 5


@pytest.mark.parametrize(
    ("depth", "tau", "cuts", "message"),
    [
        (0, 0.5, (1, 2), "depth is 1 or more"),
        (2, 1.5, (1, 2), "tau between 0 and 1"),
        (2, 0.5, (1, 2), r"leaves 1: give at least 4 blocks, or a smaller depth"),
        (9, 0.5, (1, 2), "leaves 1"),
        (1, 0.5, (), "at least 3 blocks"),
    ],
)
def test_impossible_depths(depth, tau, cuts, message):
    with pytest.raises(ValueError, match=message):
        auglocal(depth, tau)(Network(models.mlp((4,) * 5), cuts), Task(10))
