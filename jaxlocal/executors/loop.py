"""Initialisation, step and evaluation of all blocks, in order: the loops that every executor runs in its own way.

An executor says by a :class:`Run` how one block is run and where its state lives in the
meantime. Everything else is here, so all executors compute the same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlocal import block as block_lib
from jaxlocal.block import Block, BlockState, DataAxis, Metrics
from jaxlocal.executors.state import BlockMetrics, TrainState
from jaxlocal.feed import Feed
from jaxlocal.objective import Batch, Carry, no_sync
from jaxlocal.variables import Key, Variables


def stay(state: BlockState) -> BlockState:
    """Leaves a block's state where it is."""
    return state


class Run(NamedTuple):
    """How one block is run.

    Attributes:
      update: ``(block, state, carry, batch, key) -> (state, carry, metrics)``; see :func:`jaxlocal.block.update`.
      sync: ``(block, state, next block's state) -> state``.
      evaluate: ``(block, variables, carry, batch, key) -> (carry, metrics)``.
      fetch: brings a block's state to where it is computed with; called while the block before is at work.
      rest: takes an updated state to where it waits for the next step.
      pace: is given what each block leaves, and may wait for the one before.
    """

    update: Callable[[Block, BlockState, Carry, Batch, Key], tuple[BlockState, Carry, Metrics]]
    sync: Callable[[Block, BlockState, BlockState], BlockState]
    evaluate: Callable[[Block, Variables, Carry, Batch, Key], tuple[Carry, Metrics]]
    fetch: Callable[[BlockState], BlockState] = stay
    rest: Callable[[BlockState], BlockState] = stay
    pace: Callable[[Any], None] = lambda left: None


class StepKeys(NamedTuple):
    """Everything random in one step; abstract values too.

    Attributes:
      prepare: for the preparation of the batch.
      blocks: for each block, the key of its feed and its own.
    """

    prepare: Any
    blocks: Any


def step_keys(key: Key, step: Any, num_blocks: int, axis: DataAxis | None = None) -> StepKeys:
    """The keys of step ``step`` of a run whose key is ``key``; along a mapped axis each device has its own."""
    step_key = _own(jax.random.fold_in(key, step), axis)
    blocks = tuple(_pair(jax.random.fold_in(step_key, i)) for i in range(num_blocks))
    return StepKeys(jax.random.fold_in(step_key, num_blocks), blocks)


def evaluation_keys(key: Key, num_blocks: int, axis: DataAxis | None = None) -> StepKeys:
    """The keys of every evaluation."""
    key = _own(key, axis)
    return StepKeys(key, tuple(_pair(jax.random.fold_in(key, i)) for i in range(num_blocks)))


def _own(key: Key, axis: DataAxis | None) -> Key:
    return jax.random.fold_in(key, jax.lax.axis_index(axis.name)) if axis else key


def _pair(key: Key) -> tuple[Key, Key]:
    first, second = jax.random.split(key)
    return first, second


def init_state(
    blocks: Sequence[Block],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    key: Key,
    batch: Batch,
    rest: Callable[[BlockState], BlockState] = stay,
) -> TrainState:
    """Initialises all blocks, unit by unit.

    Args:
      blocks: from :func:`jaxlocal.block.make_blocks`.
      feed: of the rule.
      optimizer: of every block.
      key: typed PRNG key, ``jax.random.key(seed)``.
      batch: an example of the right shape; one image will do.
      rest: as in :class:`Run`.
    """
    init_key, train_key = jax.random.split(key)
    states: list[BlockState] = []
    carry, before = None, None
    for i, block in enumerate(blocks):
        feed_key, block_key = _pair(jax.random.fold_in(init_key, i))
        carry = feed(i, carry, batch, feed_key, train=False)
        state, carry = block_lib.init(block, block_key, carry, batch, optimizer)
        if before is not None:
            states.append(rest(block_lib.sync(blocks[i - 1], before, state, start=True)))
        before = state
    states.append(rest(state))
    return TrainState(jnp.zeros((), jnp.int32), train_key, tuple(states))


def _fetched(run: Run, state: TrainState) -> Iterator[tuple[Any, Any]]:
    """Each block's state and the next one's (None after the last), which is fetched by then."""
    coming: Any = run.fetch(state.blocks[0])
    for later in (*state.blocks[1:], None):
        present, coming = coming, None if later is None else run.fetch(later)
        yield present, coming


def step_blocks(
    run: Run, blocks: Sequence[Block], feed: Feed, state: TrainState, batch: Batch, keys: StepKeys
) -> tuple[TrainState, Any]:
    """One update of all blocks.

    Returns:
      ``(state after the step, metrics of each block)``; shapes where ``run`` only finds shapes.
    """
    carry: Carry = None
    states: list[BlockState] = []
    metrics: list[Metrics] = []
    for i, (block, (old, coming)) in enumerate(zip(blocks, _fetched(run, state), strict=True)):
        feed_key, block_key = keys.blocks[i]
        carry = feed(i, carry, batch, feed_key, train=True)
        new, carry, block_metrics = run.update(block, old, carry, batch, block_key)
        if block.objective.sync is not no_sync:
            new = run.sync(block, new, coming)
        states.append(run.rest(new))
        metrics.append(block_metrics)
        run.pace(states[-1])
    return TrainState(state.step + 1, state.key, tuple(states)), tuple(metrics)


def evaluate_blocks(
    run: Run, blocks: Sequence[Block], feed: Feed, state: TrainState, batch: Batch, keys: StepKeys
) -> BlockMetrics:
    """Loss and metrics at every exit."""
    carry: Carry = None
    metrics: list[Metrics] = []
    for i, (block, (present, _)) in enumerate(zip(blocks, _fetched(run, state), strict=True)):
        feed_key, block_key = keys.blocks[i]
        carry = feed(i, carry, batch, feed_key, train=False)
        carry, block_metrics = run.evaluate(block, present.variables, carry, batch, block_key)
        metrics.append(block_metrics)
        run.pace(block_metrics)
    return tuple(metrics)
