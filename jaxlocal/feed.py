"""How each block is fed."""

from typing import Protocol, runtime_checkable

import jax

from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import Key


@runtime_checkable
class Feed(Protocol):
    """Makes the input of block ``index``.

    Args:
      index: the block, from 0.
      previous: the output of block ``index - 1``; None for block 0.
      batch: the examples of this step.
      key: a key of this block's own.
      train: whether this is a training step.

    Returns:
      The block's input. No gradient may reach ``previous``.
    """

    def __call__(self, index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry: ...


def chain() -> Feed:
    """The usual feed: images into block 0, each block's output into the next, cut by ``stop_gradient``."""

    def feed(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
        del key, train
        return batch.image if index == 0 else jax.lax.stop_gradient(previous)

    return feed
