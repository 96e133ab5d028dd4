"""One block: initialise, differentiate, update, evaluate. Every executor is made of these.

A block's loss is differentiated with respect to the block's own parameters and
nothing else: isolation is by construction, and ``stop_gradient`` on the input says
so where one reads it.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxlocal.axis import DataAxis, mean_over
from jaxlocal.guard import changed_if, checked
from jaxlocal.layers import batch_norm_over
from jaxlocal.network import Network, blocks_of, kind_of
from jaxlocal.objective import Batch, Carry, LocalObjective, ObjectiveOut, no_sync
from jaxlocal.rule import LocalRule, Remat
from jaxlocal.variables import (
    Key,
    Variables,
    apply_module,
    cast,
    cast_floating,
    computable,
    init_module,
    merge,
    nest,
    pick,
    split,
)

Metrics = dict[str, jax.Array]
_PRODUCTS = jax.checkpoint_policies.dots_saveable  # outputs of convolutions and dense layers


class Block(NamedTuple):
    """A run of units and what they minimise.

    Attributes:
      units: in the order of computation.
      objective: of the block.
      remat: as in :class:`jaxlocal.rule.LocalRule`.
    """

    units: tuple[nn.Module, ...]
    objective: LocalObjective
    remat: Remat | None = None


@flax.struct.dataclass
class BlockState:
    """What one block owns.

    Attributes:
      variables: ``{collection: {'unit_0': ..., 'unit_1': ..., 'head': ...}}``; names count
        from the block's first unit, so blocks of equal structure have equal states.
      opt_state: of the block's own optimizer, over ``variables['params']``.
    """

    variables: Any
    opt_state: Any


def make_blocks(network: Network, local_rule: LocalRule) -> tuple[Block, ...]:
    """Pairs each run of units with its objective.

    Raises:
      ValueError: if the rule has not one objective per block, or the last one looks at a later block.
    """
    runs = blocks_of(network)
    if len(runs) != len(local_rule.objectives):
        raise ValueError(f"{len(local_rule.objectives)} objectives given for {len(runs)} blocks: one each is needed")
    if local_rule.objectives[-1].sync is not no_sync:
        raise ValueError("the objective of the last block has a sync: there is no next block for it to look at")
    return tuple(
        Block(units, objective, local_rule.remat) for units, objective in zip(runs, local_rule.objectives, strict=True)
    )


def init(
    block: Block, key: Key, carry: Carry, batch: Batch, optimizer: optax.GradientTransformation
) -> tuple[BlockState, Carry]:
    """Initialises a block on an example input.

    Returns:
      ``(state, the block's output)``.

    Raises:
      ValueError: if a unit pools its input away.
    """
    parts = {}
    for i, unit in enumerate(block.units):
        given = jax.tree.map(jnp.shape, carry)
        carry, parts[f"unit_{i}"] = init_module(unit, jax.random.fold_in(key, i), carry)
        if any(0 in jnp.shape(leaf) for leaf in jax.tree.leaves(carry)):
            raise ValueError(f"unit {kind_of(unit)} leaves nothing of an input of shape {given}: pool less")
    head_key = jax.random.fold_in(key, len(block.units))
    variables = {"params": {}, **nest(**parts, head=block.objective.init(head_key, carry, batch))}
    return BlockState(variables, optimizer.init(split(variables)[0])), carry


def forward(block: Block, variables: Variables, carry: Carry, key: Key, *, train: bool) -> tuple[Carry, Variables]:
    """The block's units alone.

    Returns:
      ``(output, mutated)``; ``mutated`` is nested by unit.
    """
    length = block.remat.every if block.remat else len(block.units)

    def span(first: int, variables: Variables, carry: Carry) -> tuple[Carry, dict[str, Variables]]:
        mutated: dict[str, Variables] = {}
        for i, unit in enumerate(block.units[first : first + length], first):
            unit_key, own = jax.random.fold_in(key, i), pick(variables, f"unit_{i}")
            if i and train:  # no gradient goes further back than the first unit
                own, carry = _own_gradient_first(own, carry)
            carry, mutated[f"unit_{i}"] = apply_module(unit, own, carry, unit_key, train=train)
        return carry, mutated

    if block.remat:
        span = jax.checkpoint(span, static_argnums=0, policy=_PRODUCTS if block.remat.products else None)
    mutated: dict[str, Variables] = {}
    for first in range(0, len(block.units), length):
        carry, new = span(first, variables, carry)
        mutated |= new
    return carry, nest(**mutated)


def head_of(block: Block, variables: Variables) -> Variables:
    """What the objective reads: the head's own variables, and what the units lend it."""
    return merge(pick(variables, "head"), block.objective.lent(variables))


def _own_gradient_first(variables: Variables, carry: Carry) -> tuple[Variables, Carry]:
    """Both as they are; on the way back, units before this one wait until its own gradient is there.

    Otherwise the compiler may put gradients of parameters off, and keep the activations that they need.
    """
    params, rest = split(variables)
    params, carry = _in_order(params, carry)
    return {"params": params, **rest}, carry


@jax.custom_vjp
def _in_order(params: Any, carry: Carry) -> tuple[Any, Carry]:
    return params, carry


def _in_order_backward(_: None, cotangents: Any) -> Any:
    leaves, structure = jax.tree.flatten(cotangents)
    floats = [i for i, leaf in enumerate(leaves) if leaf.dtype != jax.dtypes.float0]  # integers have no gradient
    for i, leaf in zip(floats, jax.lax.optimization_barrier([leaves[i] for i in floats]), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


_in_order.defvjp(lambda params, carry: ((params, carry), None), _in_order_backward)


def run(
    block: Block, variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool, dtype: Any
) -> tuple[Carry, ObjectiveOut]:
    """Units, then the objective, all computing in ``dtype``.

    Returns:
      ``(the block's output, what the objective says)``; ``mutated`` covers the whole block.

    Raises:
      ValueError: if blocks cannot compute in ``dtype``.
    """
    variables = cast(variables, computable(dtype))
    units_key, head_key = jax.random.split(key)
    output, mutated = forward(block, variables, cast_floating(carry, dtype), units_key, train=train)
    apply: Any = functools.partial(block.objective.apply, train=train)
    if block.remat:
        apply = jax.checkpoint(apply, policy=_PRODUCTS)
    out = apply(head_of(block, variables), output, batch, head_key)
    return output, out._replace(mutated=merge(mutated, nest(head=out.mutated)))


def gradients(
    block: Block,
    variables: Variables,
    carry: Carry,
    batch: Batch,
    key: Key,
    *,
    dtype: Any,
    axis: DataAxis | None = None,
) -> tuple[Any, Carry, ObjectiveOut]:
    """The local gradient: of the block's loss, with respect to the block's parameters.

    Over several devices gradient, statistics and metrics are means over the axis, equal on all of them.

    Args:
      block: units and objective.
      variables: of this block.
      carry: the block's input; no gradient reaches it.
      batch: the examples.
      key: feeds dropout and the objective's own randomness.
      dtype: of the computation; the gradient has the parameters' dtype.
      axis: that the examples are split along; None if all are here.

    Returns:
      ``(gradient, the block's output, what the objective says)``.
    """
    carry = jax.lax.stop_gradient(carry)
    params, rest = split(variables)

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Carry, ObjectiveOut]]:
        output, out = run(block, {"params": params, **rest}, carry, batch, key, train=True, dtype=dtype)
        return out.loss, (output, out)

    with batch_norm_over(axis.name if axis and axis.sync_batch_norm else None):
        gradient, (output, out) = jax.grad(loss_fn, has_aux=True)(params)
    gradient, loss, mutated, metrics = mean_over((gradient, out.loss, out.mutated, out.metrics), axis)
    return gradient, output, out._replace(loss=loss, mutated=mutated, metrics=metrics)


def update(
    block: Block,
    optimizer: optax.GradientTransformation,
    state: BlockState,
    carry: Carry,
    batch: Batch,
    key: Key,
    *,
    dtype: Any,
    axis: DataAxis | None = None,
) -> tuple[BlockState, Carry, Metrics]:
    """One step of one block: gradient, optimizer, running statistics.

    Where the loss, the squared gradient or the new statistics hold NaN or infinity, no update is made: the block
    keeps its state, so its divergence neither lasts nor reaches others by what they look at.

    The transformation ``optimizer`` is the same for every block, its state the block's; other arguments are as in
    :func:`gradients`.

    Returns:
      ``(new state, the block's output, metrics)``. The output was computed before
      the update, as in the papers' code. Metric ``finite`` is 1 where the update was made, else 0.
    """
    gradient, output, out = gradients(block, state.variables, carry, batch, key, dtype=dtype, axis=axis)
    gradient, finite = checked(gradient, (out.loss, out.mutated))

    def change(state: BlockState, by: tuple[Any, Variables]) -> BlockState:
        gradient, mutated = by
        params, rest = split(state.variables)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        return BlockState({"params": optax.apply_updates(params, updates), **merge(rest, mutated)}, opt_state)

    state = changed_if(finite, change, state, (gradient, out.mutated))
    return state, output, {**metrics_of(out), "finite": finite.astype(out.loss.dtype)}


def metrics_of(out: ObjectiveOut) -> Metrics:
    """What is reported of a block: the objective's metrics, and the loss that was minimised."""
    return {**out.metrics, "loss": out.loss}


def params_of(state: BlockState) -> Any:
    """What other blocks may look at."""
    return split(state.variables)[0]


def sync(block: Block, state: BlockState, peer: Any, *, start: bool = False) -> BlockState:
    """Lets the block's objective look at the block that it names as its peer.

    Args:
      block: units and objective.
      state: of this block, updated.
      peer: parameters of that block, before its update.
      start: whether this is the beginning, before any step, rather than after an update.
    """
    synced = nest(head=block.objective.sync(pick(state.variables, "head"), peer, start=start))
    return BlockState(merge(state.variables, synced), state.opt_state)


def evaluate(
    block: Block,
    variables: Variables,
    carry: Carry,
    batch: Batch,
    key: Key,
    *,
    dtype: Any,
    axis: DataAxis | None = None,
) -> tuple[Carry, Metrics]:
    """The block and its exit on running statistics, without dropout: ``(the block's output, metrics)``."""
    output, out = run(block, variables, carry, batch, key, train=False, dtype=dtype)
    return output, mean_over(metrics_of(out), axis)
