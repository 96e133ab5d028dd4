"""The axis along which a batch is split over devices, and means over it."""

from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree

_JOINED = 2**20  # bytes of an array that joins others in a message, at most


class DataAxis(NamedTuple):
    """The mapped axis along which a batch is split over devices.

    Attributes:
      name: of the axis.
      sync_batch_norm: whether batch norms take their statistics over the whole batch.
    """

    name: str
    sync_batch_norm: bool = False


def mean_over(tree: Any, axis: DataAxis | None) -> Any:
    """The mean over the devices; the tree itself if there is one device.

    Small arrays of a dtype go as one message: between processes each takes a millisecond or more, however short. Large
    ones go as they are: joined, they would be in memory once more.
    """
    if not axis:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    parts: dict[Any, dict[int, jax.Array]] = {}
    for i, x in enumerate(leaves):
        parts.setdefault(x.dtype if x.nbytes <= _JOINED else i, {})[i] = x
    flat = {name: ravel_pytree(part) if len(part) > 1 else (part, lambda x: x) for name, part in parts.items()}
    means = jax.lax.pmean([x for x, _ in flat.values()], axis.name)
    restored = [restore(mean) for (_, restore), mean in zip(flat.values(), means, strict=True)]
    whole = {i: x for part in restored for i, x in part.items()}
    return jax.tree.unflatten(structure, [whole[i] for i in range(len(leaves))])
