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
from jaxlocal.axis import DataAxis
from jaxlocal.block import Block, BlockState, Metrics
from jaxlocal.executors.state import BlockMetrics, TrainState
from jaxlocal.feed import Feed
from jaxlocal.objective import Batch, Carry, no_sync
from jaxlocal.variables import Key, Variables


def stay(state: Any) -> Any:
    """Leaves what a block has where it is."""
    return state


class Run(NamedTuple):
    """How one block is run.

    Attributes:
      update: ``(block, state, carry, batch, key) -> (state, carry, metrics)``; see :func:`jaxlocal.block.update`.
      sync: ``(block, state, its peer's parameters) -> state``.
      evaluate: ``(block, variables, carry, batch, key) -> (carry, metrics)``.
      fetch: brings a block's state, or its variables, to where it is computed with; called while the block before
        is at work.
      rest: takes an updated state to where it waits for the next step.
      pace: is given what each block leaves, and may wait for the one before.
    """

    update: Callable[[Block, BlockState, Carry, Batch, Key], tuple[BlockState, Carry, Metrics]]
    sync: Callable[[Block, BlockState, Any], BlockState]
    evaluate: Callable[[Block, Variables, Carry, Batch, Key], tuple[Carry, Metrics]]
    fetch: Callable[[Any], Any] = stay
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
    step_key = jax.random.fold_in(key, step)
    step_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis.name)) if axis else step_key
    blocks = tuple(_pair(jax.random.fold_in(step_key, i)) for i in range(num_blocks))
    return StepKeys(jax.random.fold_in(step_key, num_blocks), blocks)


def evaluation_keys(key: Key, num_blocks: int) -> StepKeys:
    """The keys of every evaluation; devices share them, as nothing evaluated may depend on where an example is."""
    return StepKeys(key, tuple(_pair(jax.random.fold_in(key, i)) for i in range(num_blocks)))


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
    """Initialises all blocks, unit by unit, by the key ``jax.random.key(seed)``; of the batch one image will do."""
    init_key, train_key = jax.random.split(key)
    states: list[BlockState] = []
    carry, before = None, None
    for i, block in enumerate(blocks):
        feed_key, block_key = _pair(jax.random.fold_in(init_key, i))
        carry = feed(i, carry, batch, feed_key, train=False)
        state, carry = block_lib.init(block, block_key, carry, batch, optimizer)
        if before is not None:
            if looks_at(blocks[i - 1], "next"):
                before = block_lib.sync(blocks[i - 1], before, block_lib.params_of(state), start=True)
            states.append(rest(before))
        before = state
    states.append(rest(state))
    return TrainState(jnp.zeros((), jnp.int32), train_key, tuple(states))


def looks_at(block: Block, peer: str) -> bool:
    """Whether a block's objective has a sync with the ``next`` or the ``last`` block."""
    return block.objective.sync is not no_sync and block.objective.peer == peer


class Span(NamedTuple):
    """Consecutive blocks of a network, and what runs through them.

    Attributes:
      blocks: all of them, or some.
      feed: of the rule.
      first: index in the network of the first of these blocks.
      whole: whether the network's last block is among them.
    """

    blocks: Sequence[Block]
    feed: Feed
    first: int = 0
    whole: bool = True

    def step(
        self, run: Run, states: Sequence[Any], carry: Carry, batch: Batch, keys: StepKeys
    ) -> tuple[tuple[Any, ...], Carry, Any]:
        """One update of these blocks. Those whose peer is not among them are left to look at it.

        Args:
          run: how one block is run.
          states: of these blocks.
          carry: the output of the block before; None at the beginning.
          batch: the examples.
          keys: of the step, for all blocks of the network.

        Returns:
          ``(new states, the last block's output, metrics of each block)``; shapes where ``run`` only finds shapes.
        """
        new_states: list[BlockState] = []
        metrics: list[Metrics] = []
        look_at_last = self.whole and any(looks_at(block, "last") for block in self.blocks)
        last = run.fetch(block_lib.params_of(states[-1])) if look_at_last else None
        for i, block, old, coming in self._fetched(run, states):
            feed_key, block_key = keys.blocks[i]
            with jax.named_scope(f"block_{i}"):  # for profiles
                carry = self.feed(i, carry, batch, feed_key, train=True)
                new, carry, block_metrics = run.update(block, old, carry, batch, block_key)
                if looks_at(block, "next") and coming is not None:
                    new = run.sync(block, new, block_lib.params_of(coming))
                elif looks_at(block, "last") and last is not None:
                    new = run.sync(block, new, last)
            new_states.append(run.rest(new))
            metrics.append(block_metrics)
            run.pace(new_states[-1])
        return tuple(new_states), carry, tuple(metrics)

    def evaluate(
        self, run: Run, states: Sequence[Any], carry: Carry, batch: Batch, keys: StepKeys
    ) -> tuple[Carry, BlockMetrics]:
        """Loss and metrics at every exit: ``(the last block's output, metrics of each block)``."""
        metrics: list[Metrics] = []
        for i, block, variables, _ in self._fetched(run, [state.variables for state in states]):
            feed_key, block_key = keys.blocks[i]
            carry = self.feed(i, carry, batch, feed_key, train=False)
            carry, block_metrics = run.evaluate(block, variables, carry, batch, block_key)
            metrics.append(block_metrics)
            run.pace(block_metrics)
        return carry, tuple(metrics)

    def _fetched(self, run: Run, states: Sequence[Any]) -> Iterator[tuple[int, Block, Any, Any]]:
        """Each block's index, itself, what it has and what the next one has (None after the last), fetched by then."""
        coming: Any = run.fetch(states[0])
        for i, (block, later) in enumerate(zip(self.blocks, (*states[1:], None), strict=True), self.first):
            present, coming = coming, None if later is None else run.fetch(later)
            yield i, block, present, coming
