"""What every executor shares: the training state and the interface."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxlocal import block as block_lib
from jaxlocal.block import Block
from jaxlocal.feed import Feed
from jaxlocal.objective import Batch
from jaxlocal.variables import Key, split

BlockMetrics = tuple[dict[str, jax.Array], ...]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and the key that all randomness follows from.

    Fields are not checked at run time: JAX fills pytrees with abstract values too.

    Attributes:
      step: scalar int32, updates done so far.
      key: typed PRNG key; never changes. Step t draws from ``fold_in(key, t)``.
      blocks: one :class:`jaxlocal.block.BlockState` per block.
    """

    step: Any
    key: Any
    blocks: Any


class Executor(NamedTuple):
    """How blocks are run.

    Attributes:
      step: ``(state, data) -> (state, metrics)``. The old state is donated. Metrics are
        scalars by name, one dict per block: ``loss`` and what the objective reports.
      evaluate: ``(state, data) -> metrics`` at every exit, on running statistics.
    """

    step: Callable[[TrainState, Any], tuple[TrainState, BlockMetrics]]
    evaluate: Callable[[TrainState, Any], BlockMetrics]


def as_batch(data: Batch, key: Key, *, train: bool) -> Batch:
    """The :class:`Prepare` of data that is a batch already."""
    del key, train
    return data


def init_state(
    blocks: tuple[Block, ...], feed: Feed, optimizer: optax.GradientTransformation, key: Key, batch: Batch
) -> TrainState:
    """Initialises all blocks, unit by unit.

    Args:
      blocks: from :func:`jaxlocal.block.make_blocks`.
      feed: of the rule.
      optimizer: of every block.
      key: typed PRNG key, ``jax.random.key(seed)``.
      batch: an example of the right shape; one image will do.
    """
    init_key, train_key = jax.random.split(key)
    states, carry = [], None
    for i, block in enumerate(blocks):
        feed_key, block_key = jax.random.split(jax.random.fold_in(init_key, i))
        carry = feed(i, carry, batch, feed_key, train=False)
        state, carry = block_lib.init(block, block_key, carry, batch, optimizer)
        states.append(state)
    peers = tuple(split(state.variables)[0] for state in states)
    states = [block_lib.sync(block, s, peers, start=True) for block, s in zip(blocks, states, strict=True)]
    return TrainState(jnp.zeros((), jnp.int32), train_key, tuple(states))
