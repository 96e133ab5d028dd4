from itertools import combinations, pairwise

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlocal import Network, cut_balanced, cut_evenly, cut_everywhere, models
from jaxlocal.network import activations, blocks_of, strides_of, with_strides

UNITS = models.convnet((4, 4, 8, 8, 8, 8), (1, 2, 1, 2, 1, 1))


def test_blocks_are_the_runs_between_cuts():
    blocks = blocks_of(Network(UNITS, (1, 4)))
    assert blocks == (UNITS[:1], UNITS[1:4], UNITS[4:])
    assert blocks_of(Network(UNITS)) == (UNITS,)


@pytest.mark.parametrize("cuts", [(0,), (6,), (-1,), (3, 2), (2, 2)])
def test_cuts_that_do_not_fit_say_what_would(cuts):
    with pytest.raises(ValueError, match=r"do not fit a network of 6 units.*from 1 to 5"):
        blocks_of(Network(UNITS, cuts))


@given(st.integers(1, 60), st.data())
def test_even_cuts(n, data):
    units = UNITS[:1] * n
    k = data.draw(st.integers(1, n))
    lengths = [len(block) for block in blocks_of(Network(units, cut_evenly(units, k)))]
    assert len(lengths) == k
    assert sum(lengths) == n
    assert max(lengths) - min(lengths) <= 1


def test_cut_everywhere_is_one_block_per_unit():
    assert cut_everywhere(UNITS) == cut_evenly(UNITS, 6) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("k", [0, 7])
def test_impossible_number_of_blocks(k):
    with pytest.raises(ValueError, match="choose 1 to 6"):
        cut_evenly(UNITS, k)


def test_equal_units_are_equal_specs():
    assert models.resnet(32) == models.resnet(32)
    assert len({hash(unit) for unit in models.resnet(32)}) == 6  # stem, two per stage (first differs) less stage one


def test_with_strides():
    assert strides_of(with_strides(UNITS[0], 2)) == 2
    dense = models.mlp((4,))[0]
    assert with_strides(dense, 1) == dense
    with pytest.raises(ValueError, match="DenseUnit, which has no field `strides`"):
        with_strides(dense, 2)


def test_balanced_cuts_of_resnet110_are_near_infopros():
    """The authors' tables have (16), (11, 22) and (8, 16, 28)."""
    costs = activations(models.resnet(110), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert [cut_balanced(costs, k) for k in (1, 2, 3, 4)] == [(), (17,), (11, 24), (8, 16, 29)]


def test_balanced_cuts_are_the_best_of_all():
    costs = [5.0, 1.0, 1.0, 4.0, 2.0, 3.0, 1.0]

    def dearest(cuts):
        bounds = (0, *cuts, len(costs))
        return max(sum(costs[a:b]) for a, b in pairwise(bounds))

    for k in range(1, 8):
        assert dearest(cut_balanced(costs, k)) == min(dearest(c) for c in combinations(range(1, 7), k - 1))
    with pytest.raises(ValueError, match="cannot cut 7 units into 8 blocks"):
        cut_balanced(costs, 8)
