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
from jaxlocal.block import Block, BlockState, Metrics
from jaxlocal.executors.compiler import compiler_options
from jaxlocal.executors.loop import Run, evaluate_blocks, evaluation_keys, init_state, step_blocks, step_keys
from jaxlocal.executors.state import BlockMetrics, Executor, Program, TrainState, as_batch
from jaxlocal.feed import Feed, Prepare
from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import Key, Variables, nbytes

# Traced once for blocks of equal structure, however many there are.
_update = jax.jit(block_lib.update, static_argnames=("block", "optimizer", "dtype"))
_evaluate = jax.jit(block_lib.evaluate, static_argnames=("block", "dtype"))


def _ordered(optimizer: optax.GradientTransformation | None, dtype: Any) -> Run:
    def update(
        block: Block, state: BlockState, carry: Carry, batch: Batch, key: Key
    ) -> tuple[BlockState, Carry, Metrics]:
        return jax.lax.optimization_barrier(_update(block, optimizer, state, carry, batch, key, dtype=dtype))

    def evaluate(block: Block, variables: Variables, carry: Carry, batch: Batch, key: Key) -> tuple[Carry, Metrics]:
        return jax.lax.optimization_barrier(_evaluate(block, variables, carry, batch, key, dtype=dtype))

    return Run(update, block_lib.sync, evaluate)


def train_step(
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    *,
    dtype: Any = jnp.float32,
) -> tuple[TrainState, BlockMetrics]:
    """One update of all blocks: a pure function of state and batch, for ``jax.jit``, ``jax.vmap`` and the like.

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
    keys = step_keys(state.key, state.step, len(blocks))
    return step_blocks(_ordered(optimizer, dtype), blocks, feed, state, batch, keys)


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

    def init(key: Key, batch: Batch) -> TrainState:
        return init_state(blocks, feed, optimizer, key, batch)

    def step(state: TrainState, data: Any) -> tuple[TrainState, BlockMetrics]:
        batch = prepare(data, step_keys(state.key, state.step, len(blocks)).prepare, train=True)
        return train_step(blocks, feed, optimizer, state, batch, dtype=dtype)

    def evaluate(state: TrainState, data: Any) -> BlockMetrics:
        keys = evaluation_keys(state.key, len(blocks))
        batch = prepare(data, keys.prepare, train=False)
        return evaluate_blocks(_ordered(None, dtype), blocks, feed, state, batch, keys)

    if data_axes is not None:
        init, step, evaluate = jax.vmap(init, (0, None)), jax.vmap(step, (0, data_axes)), jax.vmap(evaluate, (0, None))
    options = compiler_options(remat=any(block.remat for block in blocks))
    compiled = jax.jit(step, donate_argnums=0, compiler_options=options)

    def programs(state: TrainState, data: Any) -> tuple[Program, ...]:
        return (Program("step", 1, compiled.lower(state, data), nbytes((state, data))),)

    return Executor(init, compiled, jax.jit(evaluate, compiler_options=options), programs)
