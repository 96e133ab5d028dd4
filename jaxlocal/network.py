"""A network is a tuple of units and the places where it may be cut.

A *unit* is a Linen module called as ``unit(x, train=...)``: the smallest piece
that may be cut off. Units are specs: frozen, hashable, free of parameters, and
equal when built alike. A unit that lowers the resolution says so in a field
``strides``, however it does it, so that heads made of later units can tell where
a stage begins.

A *cut* is the index of the first unit of a block. ``cuts=(1, 4)`` on six units
makes the blocks ``[0], [1, 2, 3], [4, 5]``; ``cuts=()`` is one block.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxlocal.layers import scaled
from jaxlocal.variables import size


class Network(NamedTuple):
    """Units in the order of computation, and the cuts between blocks.

    Example:
      >>> from jaxlocal import models
      >>> network = Network(models.mlp((64, 64, 64)), cuts=(1, 2))
      >>> [len(units) for units in blocks_of(network)]
      [1, 1, 1]
    """

    units: tuple[nn.Module, ...]
    cuts: tuple[int, ...] = ()


def blocks_of(network: Network) -> tuple[tuple[nn.Module, ...], ...]:
    """The units of each block.

    Raises:
      ValueError: if the cuts are not strictly increasing indices 1..N-1.
    """
    cuts, n = network.cuts, len(network.units)
    if any(not 0 < cut < n for cut in cuts) or any(a >= b for a, b in pairwise(cuts)):
        raise ValueError(
            f"cuts {tuple(cuts)} do not fit a network of {n} units: a cut is the index of the first "
            f"unit of a block, so give strictly increasing numbers from 1 to {n - 1}"
        )
    return tuple(network.units[a:b] for a, b in pairwise((0, *cuts, n)))


def cut_everywhere(units: Sequence[nn.Module]) -> tuple[int, ...]:
    """The cuts that make every unit a block (K = N)."""
    return tuple(range(1, len(units)))


def cut_evenly(units: Sequence[nn.Module], num_blocks: int) -> tuple[int, ...]:
    """The cuts that make ``num_blocks`` blocks of as equal a number of units as possible.

    Raises:
      ValueError: if ``num_blocks`` is not between 1 and the number of units.
    """
    n = len(units)
    _check_number(n, num_blocks)
    return tuple(round(k * n / num_blocks) for k in range(1, num_blocks))


def cut_balanced(costs: Sequence[float], num_blocks: int) -> tuple[int, ...]:
    """The cuts that make ``num_blocks`` blocks whose dearest one is as cheap as possible.

    With :func:`activations` for costs, these are cuts of balanced memory (InfoPro,
    section 4.1: "InfoPro*").

    Args:
      costs: of each unit, not negative.
      num_blocks: K.

    Raises:
      ValueError: if ``num_blocks`` is not between 1 and the number of units.
    """
    n = len(costs)
    _check_number(n, num_blocks)
    total = np.concatenate([[0.0], np.cumsum(costs)])
    return cheapest_cuts(range(1, n + 1), lambda first, end: float(total[end] - total[first]), num_blocks)


def cheapest_cuts(ends: Sequence[int], cost: Callable[[int, int], float], num_blocks: int) -> tuple[int, ...]:
    """The cuts that make ``num_blocks`` blocks whose dearest one is as cheap as possible.

    Args:
      ends: where a block may end, in order; the last one is the number of units.
      cost: ``(first unit, end) -> cost`` of a block; more units do not cost less.
      num_blocks: K, from 1 to the number of ends.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {end: (cost(0, end), ()) for end in ends}
    for blocks in range(1, num_blocks):  # best[end]: the dearest of the blocks up to there, and their cuts
        best = {
            end: min((max(best[cut][0], cost(cut, end)), (*best[cut][1], cut)) for cut in ends[blocks - 1 : i])
            for i, end in enumerate(ends[blocks:], blocks)
        }
    return best[ends[-1]][1]


def _check_number(num_units: int, num_blocks: int) -> None:
    if not 1 <= num_blocks <= num_units:
        raise ValueError(f"cannot cut {num_units} units into {num_blocks} blocks: choose 1 to {num_units}")


def activations(units: Sequence[nn.Module], x: Any) -> tuple[float, ...]:
    """How many numbers each unit's modules put out for an input: what a backward pass keeps, heads apart.

    Args:
      units: of a network.
      x: the input, or its shape and dtype.
    """

    def trace(unit: nn.Module, x: Any) -> tuple[Any, Any]:
        y, variables = unit.init_with_output(
            jax.random.key(0), x, train=False, mutable=True, capture_intermediates=True
        )
        return y, variables["intermediates"]

    counts = []
    for unit in units:
        x, put_out = jax.eval_shape(functools.partial(trace, unit), x)
        counts.append(float(size(put_out)))
    return tuple(counts)


def kind_of(unit: nn.Module) -> str:
    """What a unit is called where networks are shown: its field ``described``, if it wraps another, else its class."""
    return getattr(unit, "described", type(unit).__name__)


def strides_of(unit: nn.Module) -> int:
    """By what factor a unit lowers the resolution of its input (1 if it does not say)."""
    return getattr(unit, "strides", 1)


def with_strides(unit: nn.Module, strides: int) -> nn.Module:
    """A fresh copy of a unit at another stride. Its weights are its own.

    Raises:
      ValueError: if the unit has no ``strides`` field and a stride other than 1 is asked for.
    """
    if hasattr(unit, "strides"):
        return unit.clone(strides=strides)
    if strides != 1:
        raise ValueError(f"a stride of {strides} is asked of {kind_of(unit)}, which has no field `strides`")
    return unit.clone()


def with_width(unit: nn.Module, width: float) -> nn.Module:
    """A fresh copy of a unit with ``width`` times its features, rounded down, at least one.

    Raises:
      ValueError: if the unit has no ``features`` field and a width other than 1 is asked for.
    """
    if width == 1:
        return unit.clone()
    if not hasattr(unit, "features"):
        raise ValueError(f"a width of {width} is asked of {kind_of(unit)}, which has no field `features`")
    return unit.clone(features=scaled(unit.features, width))
