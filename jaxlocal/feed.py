"""How data become a batch, and a batch the input of each block."""

import functools
from typing import Any, Protocol, runtime_checkable

from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import Key


@runtime_checkable
class Prepare(Protocol):
    """Turns what the program hands to a step into a batch, on the device and inside the step."""

    def __call__(self, data: Any, key: Key, *, train: bool) -> Batch: ...


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
      The block's input. It is cut off from ``previous`` where the block is differentiated
      (:func:`jaxlocal.block.gradients`).
    """

    def __call__(self, index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry: ...


@functools.cache
def chain() -> Feed:
    """The usual feed: images into block 0, each block's output into the next. It is the same one at each call."""

    def feed(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
        del key, train
        return batch.input if index == 0 else previous

    return feed
