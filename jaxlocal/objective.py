"""What one block minimises, and how objectives combine.

A :class:`LocalObjective` sees only its own block's output. Factories close over
hyper-parameters; combinators take and return objectives, so they chain.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxlocal import losses
from jaxlocal.layers import in_float32
from jaxlocal.scores import judged
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


FeatureLoss = Callable[[Array, Batch], Float[Array, "b"]]


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


def _mean(values: Array) -> Array:
    """Over the batch."""
    if values.ndim != 1:
        raise ValueError(f"a loss has to be one number per example, [b], but it has shape {list(values.shape)}")
    return jnp.mean(values)


def readout(head: nn.Module, loss: losses.Loss = losses.cross_entropy, tokens: int = 1) -> LocalObjective:
    """A head reads class scores off the block's output; the loss compares them with the labels.

    Args:
      head: a module called as ``head(carry, train=...)`` that returns ``[b, ..., k]``, or
        :class:`jaxlocal.scores.Scores`.
      loss: ``(logits, labels) -> [b]``; logits come in float32 or wider.
      tokens: how many each position tells, the next one and those that follow it. Each has a head of its own, and
        the loss is their mean (multi-token prediction, Gloeckle et al. 2024).

    Returns:
      An objective whose metrics hold ``accuracy``; with several tokens also ``token_1``, the loss of the next one, etc.
      It is initialised on positions enough to tell them all. Later it may be given fewer, as where a text is written
      token by token: then the scores of the next token are all that there is.

    Raises:
      ValueError: if ``tokens`` is not positive.
    """
    if tokens < 1:
        raise ValueError(f"tokens {tokens} given; each position tells 1 or more")
    if tokens == 1:
        return _readout(head, loss)
    return weighted_sum(**{f"token_{i + 1}": (1 / tokens, _readout(head, loss, i)) for i in range(tokens)})


@same_for_equal_arguments
def _readout(head: nn.Module, loss: losses.Loss, ahead: int = 0) -> LocalObjective:
    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        shape = batch.label.shape
        if ahead and (len(shape) < 2 or shape[1] <= ahead):
            raise ValueError(f"tokens {ahead + 1} positions ahead are asked for, of labels of shape {list(shape)}")
        return init_module(head, key, carry)[1]

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        scores, mutated = apply_module(head, variables, carry, key, train=train)
        values, accuracy, logits = judged(scores, batch.label, loss, ahead)
        return ObjectiveOut(_mean(values), mutated, {"accuracy": accuracy}, logits)

    return LocalObjective(init, apply, no_sync)


@same_for_equal_arguments
def feature_objective(head: nn.Module | Callable[[Batch], nn.Module], loss: FeatureLoss) -> LocalObjective:
    """A head maps the block's output to features that predict no classes; the loss reads them beside the batch.

    Args:
      head: a module called as ``head(carry, train=...)`` that returns ``[b, ...]``, or
        ``batch -> head`` where it depends on the shapes in the batch.
      loss: ``(features, batch) -> [b]``; features come in float32 or wider.
    """

    def module(batch: Batch) -> nn.Module:
        return head if isinstance(head, nn.Module) else head(batch)

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        return init_module(module(batch), key, carry)[1]

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        features, mutated = apply_module(module(batch), variables, carry, key, train=train)
        return ObjectiveOut(_mean(loss(in_float32(features), batch)), mutated, {}, None)

    return LocalObjective(init, apply, no_sync)


def random_projection(
    key: Key, num_classes: int, shape: tuple[int, ...], bound: float | None = None
) -> Float[Array, "k ..."]:
    r"""An array of ``shape`` for each class, uniform in :math:`\pm\mathrm{bound}`.

    Args:
      key: to draw from.
      num_classes: k.
      shape: of an output, without the batch.
      bound: of the entries; None for :math:`\sqrt{6 / F}` at :math:`F` numbers in an output (Kaiming's).
    """
    limit = math.sqrt(6 / math.prod(shape)) if bound is None else bound
    return jax.random.uniform(key, (num_classes, *shape), jnp.float32, -limit, limit)


@same_for_equal_arguments
def projected_label(num_classes: int, loss: losses.TargetLoss, bound: float | None = None) -> LocalObjective:
    r"""Compares the block's output with a fixed random projection of the label, without any head.

    The target is :math:`\mathrm{onehot}(y) P`, where :math:`P` is drawn once, uniformly in
    :math:`\pm\mathrm{bound}`, and has the output's shape for each class. Of a sequence, ``[b, t, f]``, the
    last time step is compared.

    Args:
      num_classes: k.
      loss: ``(output, target) -> [b]``; the output comes in float32 or wider.
      bound: as in :func:`random_projection`.

    Returns:
      An objective whose logits are the negated losses against each class's target, so its metrics hold ``accuracy``.
    """

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        del batch
        shape = carry.shape[2:] if carry.ndim == 3 else carry.shape[1:]
        return {"fixed": {"projection": random_projection(key, num_classes, shape, bound)}}

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        del key, train
        output = in_float32(carry[:, -1] if carry.ndim == 3 else carry)
        projection = variables["fixed"]["projection"].astype(output.dtype)
        value = _mean(loss(output, projection[batch.label]))
        logits = -jax.lax.map(lambda target: loss(jax.lax.stop_gradient(output), target[None]), projection).T
        return ObjectiveOut(value, {}, {"accuracy": losses.accuracy(logits, batch.label)}, logits)

    return LocalObjective(init, apply, no_sync)


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
