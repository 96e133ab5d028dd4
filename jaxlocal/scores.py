"""Scores of many classes at many positions: judged piece by piece, so that they are never there all at once."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlocal import losses
from jaxlocal.layers import in_float32

HELD = 2**24  # scores that are held at a time, at most, where positions can be taken one after the other


class Scores(NamedTuple):
    """What a head puts out that ends in a dense layer, before it is multiplied out.

    Attributes:
      features: ``[b, ..., f]``.
      table: ``[f, k]``, of the dense layer.
    """

    features: Float[Array, "b ... f"]
    table: Float[Array, "f k"]

    def whole(self) -> Float[Array, "b ... k"]:
        """All scores, in float32 or wider."""
        return in_float32(self.features @ self.table)


def judged(
    scores: Scores | Float[Array, "b ... k"], labels: Int[Array, "b ..."], loss: losses.Loss, ahead: int = 0
) -> tuple[Array, Float[Array, ""], Float[Array, "b ... k"]]:
    """How scores compare with the labels.

    Of :class:`Scores` that are more than :data:`HELD`, those of some positions at a time are multiplied out, and
    again on the way back. The whole ones cost nothing in a compiled program that does not use them.

    Args:
      scores: of a head.
      labels: of the batch.
      loss: ``(scores, labels) -> [b]``, a mean over positions.
      ahead: each position is compared with the label of so many positions later; the last ones with none.

    Returns:
      ``(what the loss returns, accuracy, whole scores)``; the last in float32 or wider. Where no position has a
      label so far ahead there are no scores, and loss and accuracy are NaN.
    """
    if ahead:
        scores, labels = _earlier(scores, ahead), labels[:, ahead:]
    logits = scores.whole() if isinstance(scores, Scores) else in_float32(scores)
    if not isinstance(scores, Scores) or (pieces := _pieces(logits.shape)) == 1:
        return loss(logits, labels), losses.accuracy(logits, labels), logits

    def cut(x: Array) -> Array:  # [pieces, b, t / pieces, ...]
        return jnp.moveaxis(x.reshape(len(x), pieces, -1, *x.shape[2:]), 1, 0)

    value, accuracy = _by_pieces(loss, cut(scores.features), scores.table, cut(labels))
    return value, accuracy, logits


def _earlier(scores: Scores | Array, ahead: int) -> Scores | Array:
    """The scores of the positions that have a label so far ahead."""
    return Scores(scores.features[:, :-ahead], scores.table) if isinstance(scores, Scores) else scores[:, :-ahead]


def _pieces(shape: tuple[int, ...]) -> int:
    """The smallest number of equal pieces along the positions of which none is too large."""
    b, t, k = shape
    return next((n for n in range(1, t + 1) if t % n == 0 and (b * (t // n) * k <= HELD or n == t)), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_pieces(loss: losses.Loss, features: Array, table: Array, labels: Array) -> tuple[Array, Array]:
    """``(losses [b], accuracy)``, the mean over pieces."""

    def one(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = Scores(piece[0], table).whole()
        return loss(logits, piece[1]), losses.accuracy(logits, piece[1])

    value, accuracy = jax.lax.map(one, (features, labels))
    return jnp.mean(value, axis=0), jnp.mean(accuracy)


def _forward(loss: losses.Loss, *args: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    return _by_pieces(loss, *args), args


def _backward(loss: losses.Loss, args: tuple[Array, ...], cotangents: Any) -> tuple[Array, Array, None]:
    features, table, labels = args
    of_piece = cotangents[0] / len(features)

    def one(of_table: Array, piece: tuple[Array, Array]) -> tuple[Array, Array]:
        _, pull = jax.vjp(lambda x, table: loss(Scores(x, table).whole(), piece[1]), piece[0], table)
        of_features, more = pull(of_piece)
        return of_table + in_float32(more), of_features

    of_table, of_features = jax.lax.scan(one, in_float32(jnp.zeros_like(table)), (features, labels))
    return of_features, of_table.astype(table.dtype), None


_by_pieces.defvjp(_forward, _backward)
