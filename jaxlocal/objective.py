"""What one block minimises, and how objectives combine.

A :class:`LocalObjective` sees only its own block's output. Factories close over
hyper-parameters; combinators take and return objectives, so they chain.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxlocal.variables import Key, Variables, apply_module, init_module, nest, pick

Carry = Any  # what flows from block to block: an array, or a pytree where a feed says so


class Batch(NamedTuple):
    """Training examples as the blocks see them.

    Attributes:
      input: ``[b, ...]``: an image ``[b, h, w, c]``, normalised, features ``[b, f]``, or tokens ``[b, t]``, integers.
      label: ``[b]``, integer classes; ``[b, t]`` where every position answers.
      pixels: ``[b, h, w, c]`` in [0, 1], the image before it was normalised; only objectives
        that reconstruct it need it.
    """

    input: Num[Array, "b ..."]
    label: Int[Array, "b ..."]
    pixels: Float[Array, "b h w c"] | None = None


class ObjectiveOut(NamedTuple):
    """What an objective says about a block's output.

    Attributes:
      loss: scalar, the mean over the batch; what the block's gradient is taken of.
      mutated: new running statistics of the objective's own modules.
      metrics: scalars by name, means over the batch.
      logits: ``[b, ..., k]`` in float32 or wider, or None where the objective predicts no classes.
    """

    loss: Float[Array, ""]
    mutated: Variables
    metrics: dict[str, Array]
    logits: Float[Array, "b ... k"] | None


@runtime_checkable
class Apply(Protocol):
    """The type of :attr:`LocalObjective.apply`."""

    def __call__(self, variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut: ...


@runtime_checkable
class Sync(Protocol):
    """The type of :attr:`LocalObjective.sync`."""

    def __call__(self, variables: Variables, peer: Any, *, start: bool) -> Variables: ...

    def __hash__(self) -> int:
        """A sync is a function, equal to itself alone."""
        ...


class LocalObjective(NamedTuple):
    """What ONE block minimises, seeing only its own output.

    Attributes:
      init: ``(key, carry, batch) -> variables`` of the head.
      apply: ``(variables, carry, batch, key, *, train) -> ObjectiveOut``.
      sync: ``(variables, peer, *, start) -> variables``, once after each update; :func:`no_sync`
        where there is nothing to do. ``peer`` holds the ``params`` of another block as they
        were before the step. For the next block it is also called once, with ``start`` true, when
        both blocks have been initialised.
      peer: the block that ``sync`` looks at, ``next`` or ``last``.
      lent: ``variables of the block -> variables`` that the head has beside its own, with their gradients.
    """

    init: Callable[[Key, Carry, Batch], Variables]
    apply: Apply
    sync: Sync
    peer: str = "next"
    lent: Callable[[Variables], Variables] = lambda variables: {}


def no_sync(variables: Variables, peer: Any, *, start: bool) -> Variables:
    """The ``sync`` of objectives that look at no other block."""
    del peer, start
    return variables


_isolating: ContextVar[bool] = ContextVar("isolating", default=True)


def isolated(carry: Carry) -> Carry:
    """The carry itself, which gradients do not pass; but within :func:`end_to_end` they do."""
    return jax.lax.stop_gradient(carry) if _isolating.get() else carry


@contextmanager
def end_to_end() -> Iterator[None]:
    """What is traced in here is not isolated: diagnostics compare a rule with the gradient that it does without."""
    token = _isolating.set(False)
    try:
        yield
    finally:
        _isolating.reset(token)


# Equal arguments give the same objective, so that blocks of equal structure are equal
# and share one compilation.
same_for_equal_arguments = functools.lru_cache(maxsize=4096)


def headless(apply: Apply) -> LocalObjective:
    """An objective without variables of its own."""
    return LocalObjective(lambda key, carry, batch: {}, apply, no_sync)


@same_for_equal_arguments
def detached(inner: LocalObjective) -> LocalObjective:
    """Trains the inner objective's head alone: its gradient does not reach the block."""

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        return inner.apply(variables, isolated(carry), batch, key, train=train)

    return inner._replace(apply=apply)


@same_for_equal_arguments
def through(adapter: nn.Module, inner: LocalObjective, sync: Sync = no_sync) -> LocalObjective:
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

    def sync_both(variables: Variables, peer: Any, *, start: bool) -> Variables:
        adapted = sync(pick(variables, "adapter"), peer, start=start)
        return nest(adapter=adapted, inner=inner.sync(pick(variables, "inner"), peer, start=start))

    def lent(variables: Variables) -> Variables:
        return nest(inner=inner.lent(variables))

    if sync is no_sync and inner.sync is no_sync:
        return LocalObjective(init, apply, no_sync, lent=lent)
    if sync is not no_sync and inner.peer != "next":
        raise ValueError("an adapter looks at the next block and the objective behind it at the last: choose one")
    return LocalObjective(init, apply, sync_both, inner.peer, lent)


@same_for_equal_arguments
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

    def sync(variables: Variables, peer: Any, *, start: bool) -> Variables:
        return nest(**{n: o.sync(pick(variables, n), peer, start=start) for n, (_, o) in terms.items()})

    def lent(variables: Variables) -> Variables:
        return nest(**{name: objective.lent(variables) for name, (_, objective) in terms.items()})

    peers = {objective.peer for _, objective in terms.values() if objective.sync is not no_sync}
    if len(peers) > 1:
        raise ValueError("some terms look at the next block and some at the last: choose one")
    return LocalObjective(init, apply, sync if peers else no_sync, next(iter(peers), "next"), lent)


@same_for_equal_arguments
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

    def sync(variables: Variables, peer: Any, *, start: bool) -> Variables:
        return to_fixed(inner.sync(from_fixed(variables), peer, start=start))

    return inner._replace(init=init, apply=apply, sync=no_sync if inner.sync is no_sync else sync)
