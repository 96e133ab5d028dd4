"""How arrays come from the devices of one stage to those of another."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlocal.executors.data_parallel import AXIS, Placement, is_here
from jaxlocal.variables import abstract

STAGE = "stage"


class Link:
    """Copies arrays from the devices of one placement to those of another, one to one.

    Within a process copies are direct. Between processes they are a collective: all processes of both placements
    have to make the same calls in the same order.

    Args:
      source: where arrays are.
      target: of as many devices.
    """

    def __init__(self, source: Placement, target: Placement) -> None:
        self._source, self._target = source, target
        self._pairs = dict(zip(source.devices, target.devices, strict=True))
        self._direct = all(a.process_index == b.process_index for a, b in self._pairs.items())
        self._mesh = Mesh(np.array([source.devices, target.devices]), (STAGE, AXIS))
        self._shift = functools.cache(self._shift_of)
        self._nothing = functools.cache(lambda shape, dtype, at: jax.device_put(np.zeros(shape, dtype), at))

    def __call__(self, tree: Any, axes: Any) -> Any:
        """The tree on the target; shapes, as they are on the source, if none of its devices are this process's.

        Args:
          tree: of arrays of the source; where the process has none of its devices, their shapes.
          axes: a tree prefix of None (every device has all of it) and 0 (split).
        """
        if not (is_here(self._source) or is_here(self._target)):
            return tree
        flat, structure = jax.tree.flatten(tree)
        axes = _axes_of_leaves(axes, tree)
        if self._direct:
            pieces = [[jax.device_put(piece, self._pairs[at]) for at, piece in _pieces(x).items()] for x in flat]
        else:
            pieces = self._across(flat, axes)
        if not is_here(self._target):
            return jax.tree.map(abstract, tree)
        moved = [
            jax.make_array_from_single_device_arrays(x.shape, self._target.sharding(axis), pieces_of_x)
            for x, axis, pieces_of_x in zip(flat, axes, pieces, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    def _across(self, flat: Sequence[Any], axes: Sequence[int | None]) -> list[list[jax.Array]]:
        """The pieces of each array on this process's devices of the target, by a collective over both placements."""
        specs = tuple(
            PartitionSpec(STAGE, AXIS) if axis == 0 and self._source.axis else PartitionSpec(STAGE) for axis in axes
        )
        both = [
            self._of_both(x, axis, NamedSharding(self._mesh, spec))
            for x, axis, spec in zip(flat, axes, specs, strict=True)
        ]
        moved = self._shift(specs)(*both)
        return [[piece[0] for at, piece in _pieces(x).items() if at in self._target.devices] for x in moved]

    def _of_both(self, x: Any, axis: int | None, sharding: NamedSharding) -> jax.Array:
        """The array on the source beside nothing on the target."""
        shape = self._source.sharding(axis).shard_shape(x.shape)
        here = _pieces(x) if is_here(self._source) else {}
        pieces = [
            here[at][None] if at in here else self._nothing((1, *shape), x.dtype, at)
            for at in sharding.addressable_devices_indices_map((2, *x.shape))
        ]
        return jax.make_array_from_single_device_arrays((2, *x.shape), sharding, pieces)

    def _shift_of(self, specs: tuple[PartitionSpec, ...]) -> Any:
        def shift(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(jax.lax.ppermute(x, STAGE, [(0, 1)]) for x in arrays)

        return jax.jit(jax.shard_map(shift, mesh=self._mesh, in_specs=specs, out_specs=specs, check_vma=False))


def _pieces(x: jax.Array) -> dict[jax.Device, jax.Array]:
    return {shard.device: shard.data for shard in x.addressable_shards}


def _axes_of_leaves(axes: Any, tree: Any) -> list[int | None]:
    """A tree prefix of None and 0, spread over the leaves of a tree; None in the tree is no leaf."""

    def spread(axis: int | None, part: Any) -> list[int | None]:
        return [axis] * len(jax.tree.leaves(part))

    def is_none(x: Any) -> bool:
        return x is None

    return jax.tree.leaves(jax.tree.map(spread, axes, tree, is_leaf=is_none), is_leaf=is_none)
