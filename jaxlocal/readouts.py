"""Objectives that compare what a block puts out with the batch: through a head, or as it is."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlocal import losses
from jaxlocal.layers import in_float32
from jaxlocal.objective import (
    Batch,
    Carry,
    LocalObjective,
    ObjectiveOut,
    no_sync,
    same_for_equal_arguments,
    weighted_sum,
)
from jaxlocal.scores import judged
from jaxlocal.variables import Key, Variables, apply_module, init_module

FeatureLoss = Callable[[Array, Batch], Float[Array, "b"]]


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
