"""What one block minimises, and how objectives combine.

A :class:`LocalObjective` sees only its own block's output. Factories close over
hyper-parameters; combinators take and return objectives, so they chain.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlocal import losses
from jaxlocal.variables import Key, Variables, apply_module, init_module, nest, pick

Carry = Any  # what flows from block to block: an array, or a pytree where a feed says so


class Batch(NamedTuple):
    """Training examples as the blocks see them.

    Attributes:
      image: ``[b, h, w, c]`` (or ``[b, f]``), normalised.
      label: ``[b]``, integer classes.
    """

    image: Float[Array, "b ..."]
    label: Int[Array, "b"]


class ObjectiveOut(NamedTuple):
    """What an objective says about a block's output.

    Attributes:
      loss: scalar, the mean over the batch; what the block's gradient is taken of.
      mutated: new running statistics of the objective's own modules.
      metrics: scalars by name, means over the batch.
      logits: ``[b, k]`` in float32 or wider, or None where the objective predicts no classes.
    """

    loss: Float[Array, ""]
    mutated: Variables
    metrics: dict[str, Array]
    logits: Float[Array, "b k"] | None


@runtime_checkable
class Apply(Protocol):
    """The type of :attr:`LocalObjective.apply`."""

    def __call__(self, variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut: ...


class LocalObjective(NamedTuple):
    """What ONE block minimises, seeing only its own output.

    Attributes:
      init: ``(key, carry, batch) -> variables`` of the head.
      apply: ``(variables, carry, batch, key, *, train) -> ObjectiveOut``.
      sync: ``(variables, peers) -> variables``, once after each update. ``peers``
        holds the ``params`` of every block as they were before the step.
    """

    init: Callable[[Key, Carry, Batch], Variables]
    apply: Apply
    sync: Callable[[Variables, tuple[Any, ...]], Variables]


def no_sync(variables: Variables, peers: tuple[Any, ...]) -> Variables:
    """The ``sync`` of objectives that do not look at their peers."""
    del peers
    return variables


# Equal arguments give the same objective, so that blocks of equal structure are equal
# and share one compilation.
_same_for_equal_arguments = functools.lru_cache(maxsize=4096)


def readout(head: nn.Module, loss: losses.Loss = losses.cross_entropy) -> LocalObjective:
    """A head reads class scores off the block's output; the loss compares them with the labels.

    Args:
      head: a module called as ``head(carry, train=...)`` that returns ``[b, k]``.
      loss: ``(logits, labels) -> [b]``; logits come in float32 or wider.

    Returns:
      An objective whose metrics hold ``accuracy``.
    """
    return _readout(head, loss)


@_same_for_equal_arguments
def _readout(head: nn.Module, loss: losses.Loss) -> LocalObjective:
    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        del batch
        return init_module(head, key, carry)[1]

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        logits, mutated = apply_module(head, variables, carry, key, train=train)
        logits = logits.astype(jnp.float32) if logits.dtype.itemsize < 4 else logits
        metrics = {"accuracy": losses.accuracy(logits, batch.label)}
        return ObjectiveOut(jnp.mean(loss(logits, batch.label)), mutated, metrics, logits)

    return LocalObjective(init, apply, no_sync)


@_same_for_equal_arguments
def through(
    adapter: nn.Module,
    inner: LocalObjective,
    sync: Callable[[Variables, tuple[Any, ...]], Variables] = no_sync,
) -> LocalObjective:
    """Sends the block's output through an adapter before the inner objective sees it.

    Args:
      adapter: a module called as ``adapter(carry, train=...)``; its result is the
        inner objective's carry. It trains with the block unless it keeps its
        tensors outside ``params``.
      inner: the objective behind it.
      sync: acts on the adapter's variables; the inner objective keeps its own.
    """

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        adapter_key, inner_key = jax.random.split(key)
        adapted, variables = init_module(adapter, adapter_key, carry)
        return nest(adapter=variables, inner=inner.init(inner_key, adapted, batch))

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        adapter_key, inner_key = jax.random.split(key)
        adapted, mutated = apply_module(adapter, pick(variables, "adapter"), carry, adapter_key, train=train)
        out = inner.apply(pick(variables, "inner"), adapted, batch, inner_key, train=train)
        return out._replace(mutated=nest(adapter=mutated, inner=out.mutated))

    def sync_both(variables: Variables, peers: tuple[Any, ...]) -> Variables:
        return nest(adapter=sync(pick(variables, "adapter"), peers), inner=inner.sync(pick(variables, "inner"), peers))

    return LocalObjective(init, apply, sync_both)


@_same_for_equal_arguments
def weighted_sum(**terms: tuple[float, LocalObjective]) -> LocalObjective:
    """``sum_i weight_i * objective_i`` of named objectives on the same output.

    Args:
      **terms: ``name=(weight, objective)``.

    Returns:
      An objective whose metrics hold each term's unweighted loss under its name, and
      its metrics as ``name/metric``. Logits, and ``accuracy``, are those of the first
      term that has any.

    Raises:
      ValueError: if no term is given.
    """
    if not terms:
        raise ValueError("weighted_sum needs at least one term, as name=(weight, objective)")

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        keys = jax.random.split(key, len(terms))
        return nest(**{n: o.init(k, carry, batch) for k, (n, (_, o)) in zip(keys, terms.items(), strict=True)})

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        keys = jax.random.split(key, len(terms))
        outs = {
            name: objective.apply(pick(variables, name), carry, batch, k, train=train)
            for k, (name, (_, objective)) in zip(keys, terms.items(), strict=True)
        }
        total = sum((terms[name][0] * out.loss for name, out in outs.items()), start=jnp.zeros(()))
        metrics = {name: out.loss for name, out in outs.items()}
        metrics |= {f"{name}/{metric}": x for name, out in outs.items() for metric, x in out.metrics.items()}
        exit_ = next((out for out in outs.values() if out.logits is not None), None)
        if exit_ and "accuracy" in exit_.metrics:
            metrics["accuracy"] = exit_.metrics["accuracy"]
        mutated = nest(**{name: out.mutated for name, out in outs.items()})
        return ObjectiveOut(total, mutated, metrics, exit_.logits if exit_ else None)

    def sync(variables: Variables, peers: tuple[Any, ...]) -> Variables:
        return nest(**{n: o.sync(pick(variables, n), peers) for n, (_, o) in terms.items()})

    return LocalObjective(init, apply, sync)


@_same_for_equal_arguments
def freeze(inner: LocalObjective) -> LocalObjective:
    """Keeps the inner head's parameters at their initial values.

    They move from ``params`` to ``fixed``; the gradient still flows through them to the block.
    """

    def to_fixed(variables: Variables) -> Variables:
        moved = {c: variables[c] for c in ("params", "fixed") if c in variables}
        return {**{c: tree for c, tree in variables.items() if c not in moved}, "fixed": moved}

    def from_fixed(variables: Variables) -> Variables:
        return {**{c: tree for c, tree in variables.items() if c != "fixed"}, **variables["fixed"]}

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        return to_fixed(inner.init(key, carry, batch))

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        return inner.apply(from_fixed(variables), carry, batch, key, train=train)

    def sync(variables: Variables, peers: tuple[Any, ...]) -> Variables:
        return to_fixed(inner.sync(from_fixed(variables), peers))

    return LocalObjective(init, apply, sync)
