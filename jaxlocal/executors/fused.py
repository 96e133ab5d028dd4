"""All blocks in one compiled step, in order.

XLA may interleave independent blocks, and then every block's activations are alive
at once. A barrier over a block's whole new state and its output puts "block i is
updated" before "block i + 1 starts", so a block's memory is free again by then.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlocal import block as block_lib
from jaxlocal.block import Block
from jaxlocal.executors.compiler import compiler_options
from jaxlocal.executors.state import BlockMetrics, Executor, TrainState, as_batch
from jaxlocal.feed import Feed, Prepare
from jaxlocal.objective import Batch, no_sync
from jaxlocal.variables import split

# Traced once for blocks of equal structure, however many there are.
_update = jax.jit(block_lib.update, static_argnames=("block", "optimizer", "dtype"))
_evaluate = jax.jit(block_lib.evaluate, static_argnames=("block", "dtype"))


def _alike(block: Block) -> Block:
    """The block without its sync, which is part of neither: it may know its place, and no two would be equal."""
    return block._replace(objective=block.objective._replace(sync=no_sync))


def train_step(
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    *,
    dtype: Any = jnp.float32,
) -> tuple[TrainState, BlockMetrics]:
    """One update of all blocks: the pure function that :func:`fused` compiles.

    Args:
      blocks: from :func:`jaxlocal.block.make_blocks`.
      feed: of the rule.
      optimizer: of every block.
      state: before the step.
      batch: the examples.
      dtype: of the computation; parameters keep theirs.

    Returns:
      ``(state after the step, metrics of each block)``.
    """
    step_key = jax.random.fold_in(state.key, state.step)
    peers = tuple(split(block_state.variables)[0] for block_state in state.blocks)
    carry, states, metrics = None, [], []
    for i, (block, old) in enumerate(zip(blocks, state.blocks, strict=True)):
        feed_key, block_key = jax.random.split(jax.random.fold_in(step_key, i))
        carry = feed(i, carry, batch, feed_key, train=True)
        new, carry, block_metrics = _update(_alike(block), optimizer, old, carry, batch, block_key, dtype=dtype)
        done = (block_lib.sync(block, new, peers), carry, block_metrics)
        new, carry, block_metrics = jax.lax.optimization_barrier(done)
        states.append(new)
        metrics.append(block_metrics)
    return TrainState(state.step + 1, state.key, tuple(states)), tuple(metrics)


def evaluate(
    blocks: tuple[Block, ...], feed: Feed, state: TrainState, batch: Batch, *, dtype: Any = jnp.float32
) -> BlockMetrics:
    """Loss and metrics at every exit."""
    carry, metrics = None, []
    for i, (block, block_state) in enumerate(zip(blocks, state.blocks, strict=True)):
        feed_key, block_key = jax.random.split(jax.random.fold_in(state.key, i))
        carry = feed(i, carry, batch, feed_key, train=False)
        carry, out = _evaluate(_alike(block), block_state.variables, carry, batch, block_key, dtype=dtype)
        carry, block_metrics = jax.lax.optimization_barrier((carry, block_lib.metrics_of(out)))
        metrics.append(block_metrics)
    return tuple(metrics)


def fused(
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare = as_batch,
    dtype: Any = jnp.float32,
    data_axes: Any = None,
) -> Executor:
    """The executor that compiles all blocks, and ``prepare``, into one step.

    Args:
      blocks: from :func:`jaxlocal.block.make_blocks`.
      feed: of the rule.
      optimizer: of every block.
      prepare: makes a batch of a step's data, inside the step.
      dtype: of the computation, ``float32`` or ``bfloat16`` (or ``float64`` under x64).
      data_axes: trains several seeds together, states stacked along a leading axis: which
        axis of each of a step's data goes with it, as ``in_axes`` of :func:`jax.vmap`.
        Evaluation gives the same data to all. None trains one state.
    """

    def step(state: TrainState, data: Any) -> tuple[TrainState, BlockMetrics]:
        prepare_key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), len(blocks))
        batch = prepare(data, prepare_key, train=True)
        return train_step(blocks, feed, optimizer, state, batch, dtype=dtype)

    def evaluate_all(state: TrainState, data: Any) -> BlockMetrics:
        return evaluate(blocks, feed, state, prepare(data, state.key, train=False), dtype=dtype)

    if data_axes is not None:
        step, evaluate_all = jax.vmap(step, (0, data_axes)), jax.vmap(evaluate_all, (0, None))
    options = compiler_options(remat=any(block.remat for block in blocks))
    return Executor(
        step=jax.jit(step, donate_argnums=0, compiler_options=options),
        evaluate=jax.jit(evaluate_all, compiler_options=options),
    )
