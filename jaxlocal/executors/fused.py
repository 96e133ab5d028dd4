"""All blocks in one compiled step, in order.

XLA may interleave independent blocks, and then every block's activations are alive
at once. A barrier over a block's whole new state and its output puts "block i is
updated" before "block i + 1 starts", so a block's memory is free again by then.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlocal import block as block_lib
from jaxlocal.axis import DataAxis
from jaxlocal.block import Block, BlockState, Metrics
from jaxlocal.executors.data_parallel import ONE_DEVICE, Placement, bytes_of_a_device
from jaxlocal.executors.loop import Run, Span, evaluation_keys, init_state, step_keys
from jaxlocal.executors.state import BlockMetrics, Executor, Program, TrainState, as_batch
from jaxlocal.feed import Feed, Prepare
from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import Key, Variables, computable, nbytes

# Traced once for blocks of equal structure, however many there are.
_update = jax.jit(block_lib.update, static_argnames=("block", "optimizer", "dtype", "axis"))
_evaluate = jax.jit(block_lib.evaluate, static_argnames=("block", "dtype", "axis"))


def ordered(optimizer: optax.GradientTransformation | None, dtype: Any, axis: DataAxis | None) -> Run:
    """Blocks within one program, each done before the next starts; without an optimizer, to evaluate only."""

    def update(
        block: Block, state: BlockState, carry: Carry, batch: Batch, key: Key
    ) -> tuple[BlockState, Carry, Metrics]:
        return jax.lax.optimization_barrier(_update(block, optimizer, state, carry, batch, key, dtype=dtype, axis=axis))

    def evaluate(block: Block, variables: Variables, carry: Carry, batch: Batch, key: Key) -> tuple[Carry, Metrics]:
        return jax.lax.optimization_barrier(_evaluate(block, variables, carry, batch, key, dtype=dtype, axis=axis))

    return Run(update, block_lib.sync, evaluate)


def train_step(
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    *,
    dtype: Any = jnp.float32,
    axis: DataAxis | None = None,
) -> tuple[TrainState, BlockMetrics]:
    """One update of all blocks: a pure function of state and batch, for ``jax.jit``, ``jax.vmap`` and the like.

    Blocks are from :func:`jaxlocal.block.make_blocks`; they compute in ``dtype``, parameters keep theirs. Within a
    ``jax.pmap`` or ``jax.shard_map``, ``axis`` is the one that the examples are split along.

    Returns:
      ``(state after the step, metrics of each block)``.
    """
    keys = step_keys(state.key, state.step, len(blocks), axis)
    run = ordered(optimizer, dtype, axis)
    states, _, metrics = Span(blocks, feed).step(run, state.blocks, None, batch, keys)
    return TrainState(state.step + 1, state.key, states), metrics


def fused(
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare = as_batch,
    dtype: Any = jnp.float32,
    batch_axes: Any = 0,
    seeds: bool = False,
    placement: Placement = ONE_DEVICE,
) -> Executor:
    """The executor that compiles all blocks, and ``prepare``, into one step.

    Args:
      blocks: from :func:`jaxlocal.block.make_blocks`.
      feed: of the rule.
      optimizer: of every block.
      prepare: makes a batch of a step's data, inside the step.
      dtype: of the computation, ``float32`` or ``bfloat16`` (or ``float64`` under x64).
      batch_axes: which of a step's data belong to single examples (0: their first axis) and which to the
        whole step (None): a tree prefix, as ``in_axes`` of :func:`jax.vmap`.
      seeds: whether several seeds train together, states stacked along a leading axis. So are then the
        data of ``batch_axes`` 0; evaluation gives the same data to all.
      placement: the devices.

    Raises:
      ValueError: if blocks cannot compute in ``dtype``.
    """
    axis, dtype = placement.axis, computable(dtype)

    init: Any = functools.partial(init_state, blocks, feed, optimizer)

    def step(state: TrainState, data: Any) -> tuple[TrainState, BlockMetrics]:
        batch = prepare(data, step_keys(state.key, state.step, len(blocks), axis).prepare, train=True)
        return train_step(blocks, feed, optimizer, state, batch, dtype=dtype, axis=axis)

    def evaluate(state: TrainState, data: Any) -> BlockMetrics:
        keys = evaluation_keys(state.key, len(blocks))
        batch = prepare(data, keys.prepare, train=False)
        return Span(blocks, feed).evaluate(ordered(None, dtype, axis), state.blocks, None, batch, keys)[1]

    if seeds:
        init, step, evaluate = jax.vmap(init, (0, None)), jax.vmap(step, (0, batch_axes)), jax.vmap(evaluate, (0, None))
    step_program = placement.program(step, (None, batch_axes), None, donate_argnums=0)
    evaluate_program = placement.program(evaluate, (None, batch_axes), None)

    def programs(state: TrainState, data: Any) -> tuple[Program, ...]:
        of_data = bytes_of_a_device(placement, data, batch_axes)
        return (Program.of("step", step_program, (state, data), nbytes(state) + of_data),)

    return Executor(lambda key, batch: placement.replicate(init(key, batch)), step_program, evaluate_program, programs)
