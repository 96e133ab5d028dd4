"""A network is a tuple of units and the places where it may be cut.

A *unit* is a Linen module called as ``unit(x, train=...)``: the smallest piece
that may be cut off. Units are specs: frozen, hashable, free of parameters, and
equal when built alike. A unit that lowers the resolution says so in a field
``strides``, however it does it, so that heads made of later units can tell where
a stage begins.

A *cut* is the index of the first unit of a block. ``cuts=(1, 4)`` on six units
makes the blocks ``[0], [1, 2, 3], [4, 5]``; ``cuts=()`` is one block.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn


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
    bounds = (0, *cuts, n)
    return tuple(network.units[a:b] for a, b in pairwise(bounds))


def cut_everywhere(units: Sequence[nn.Module]) -> tuple[int, ...]:
    """The cuts that make every unit a block (K = N)."""
    return tuple(range(1, len(units)))


def cut_evenly(units: Sequence[nn.Module], num_blocks: int) -> tuple[int, ...]:
    """The cuts that make ``num_blocks`` blocks of as equal a number of units as possible.

    Raises:
      ValueError: if ``num_blocks`` is not between 1 and the number of units.
    """
    n = len(units)
    if not 1 <= num_blocks <= n:
        raise ValueError(f"cannot cut {n} units into {num_blocks} blocks: choose 1 to {n}")
    return tuple(round(k * n / num_blocks) for k in range(1, num_blocks))


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
        raise ValueError(f"a stride of {strides} is asked of {type(unit).__name__}, which has no field `strides`")
    return unit.clone()
