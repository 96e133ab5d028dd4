"""How far local gradients point where the end-to-end gradient does. States are of one seed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlocal import block as block_lib
from jaxlocal.block import Block
from jaxlocal.executors.loop import step_keys
from jaxlocal.executors.state import TrainState
from jaxlocal.feed import Feed
from jaxlocal.losses import Loss, cross_entropy
from jaxlocal.objective import Batch, Carry, end_to_end
from jaxlocal.variables import cast, cast_floating, split


def local_gradients(
    blocks: Sequence[Block], feed: Feed, state: TrainState, batch: Batch, *, dtype: Any
) -> tuple[Any, ...]:
    """What each block's next step learns from: the gradient of its own loss, for its units alone, without the head."""
    keys = step_keys(state.key, state.step, len(blocks)).blocks
    found, carry = [], None
    for i, (block, own) in enumerate(zip(blocks, state.blocks, strict=True)):
        feed_key, block_key = keys[i]
        carry = feed(i, carry, batch, feed_key, train=True)
        gradient, carry, _ = block_lib.gradients(block, own.variables, carry, batch, block_key, dtype=dtype)
        found.append(_of_units(gradient))
    return tuple(found)


def end_to_end_gradients(
    blocks: Sequence[Block], feed: Feed, state: TrainState, batch: Batch, *, dtype: Any, loss: Loss = cross_entropy
) -> tuple[Any, ...]:
    """The gradient of the loss at the last exit for the units of every block, as if nothing were isolated.

    The randomness is that of :func:`local_gradients`. Where the last block predicts no classes, gradients are zero.
    """
    keys = step_keys(state.key, state.step, len(blocks)).blocks

    def value(params: tuple[Any, ...]) -> Array:
        carry: Carry = None
        for i, (block, own) in enumerate(zip(blocks, state.blocks, strict=True)):
            feed_key, block_key = keys[i]
            carry = feed(i, carry, batch, feed_key, train=True)
            variables = {**split(own.variables)[1], "params": {**split(own.variables)[0], **params[i]}}
            if i == len(blocks) - 1:
                logits = block_lib.run(block, variables, carry, batch, block_key, train=True, dtype=dtype)[1].logits
                return jnp.zeros(()) if logits is None else jnp.mean(loss(logits, batch.label))
            units_key, _ = jax.random.split(block_key)
            carry, _ = block_lib.forward(
                block, cast(variables, dtype), cast_floating(carry, dtype), units_key, train=True
            )
        raise ValueError("a network has one block at least")

    with end_to_end():
        return jax.grad(value)(tuple(_of_units(split(own.variables)[0]) for own in state.blocks))


def cosine(a: Any, b: Any) -> Float[Array, ""]:
    """The cosine between two pytrees of one structure, taken as vectors; NaN if either is zero."""

    def product(x: Any, y: Any) -> Array:
        parts = jax.tree.map(lambda p, q: jnp.vdot(p, q, precision=jax.lax.Precision.HIGHEST), x, y)
        return sum(jax.tree.leaves(parts), start=jnp.zeros(()))

    return product(a, b) / jnp.sqrt(product(a, a) * product(b, b))


def alignment(
    blocks: Sequence[Block], feed: Feed, state: TrainState, batch: Batch, *, dtype: Any, loss: Loss = cross_entropy
) -> Float[Array, "K"]:
    """The cosine between each block's local gradient and the end-to-end gradient of the same units.

    It is 1 for a last block that minimises this very ``loss``, and so for backprop. It is NaN where no gradient goes
    from the last exit to a block, as under NoProp.
    """
    local = local_gradients(blocks, feed, state, batch, dtype=dtype)
    whole = end_to_end_gradients(blocks, feed, state, batch, dtype=dtype, loss=loss)
    return jnp.stack([cosine(a, b) for a, b in zip(local, whole, strict=True)])


def _of_units(tree: Any) -> Any:
    return {name: part for name, part in tree.items() if name != "head"}
