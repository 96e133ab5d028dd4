"""What every unit and every exit of a network puts out, in evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlocal.block import Block, head_of
from jaxlocal.executors.loop import evaluation_keys
from jaxlocal.executors.state import TrainState
from jaxlocal.feed import Feed
from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import apply_module, cast, cast_floating, pick


class Observed(NamedTuple):
    """Outputs for a batch.

    Attributes:
      units: of each unit, ``[b, ...]``.
      logits: of each block's exit, ``[b, k]``; None where the objective predicts no classes.
    """

    units: tuple[Any, ...]
    logits: tuple[Any, ...]


def observe(blocks: Sequence[Block], feed: Feed, state: TrainState, batch: Batch, *, dtype: Any) -> Observed:
    """Runs the network as evaluation does, on running statistics and without dropout.

    Where a unit hands on several arrays (a rule may make it), its output is what it adds to them. The state is of one
    seed; ``dtype`` is that of the computation.
    """
    keys = evaluation_keys(state.key, len(blocks)).blocks
    units, logits = [], []
    carry: Carry = None
    for i, (block, own) in enumerate(zip(blocks, state.blocks, strict=True)):
        feed_key, block_key = keys[i]
        carry = cast_floating(feed(i, carry, batch, feed_key, train=False), dtype)
        variables = cast(own.variables, dtype)
        units_key, head_key = jax.random.split(block_key)
        for j, unit in enumerate(block.units):
            before = jax.tree.leaves(carry)
            carry, _ = apply_module(unit, pick(variables, f"unit_{j}"), carry, units_key, train=False)
            units.append(_added(before, carry, len(batch.label)))
        logits.append(block.objective.apply(head_of(block, variables), carry, batch, head_key, train=False).logits)
    return Observed(tuple(units), tuple(logits))


def _added(before: Sequence[Any], carry: Carry, size: int) -> jax.Array:
    """The carry itself if it is one array, else its new arrays side by side, a row for each example."""
    leaves = jax.tree.leaves(carry)
    if len(leaves) == 1:
        return leaves[0]
    new = [x for x in leaves if not any(x is old for old in before) and x.ndim and len(x) == size]
    new = [x for x in new if jnp.issubdtype(x.dtype, jnp.floating)]
    return new[0] if len(new) == 1 else jnp.concatenate([x.reshape(size, -1) for x in new], axis=1)
