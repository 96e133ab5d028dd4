"""Losses: pure functions of arrays, one value per example."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Loss = Callable[[Float[Array, "b k"], Int[Array, "b"]], Float[Array, "b"]]


def cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, "b"], *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
    r"""Softmax cross-entropy, :math:`-\sum_k q_k \log p_k`.

    With smoothing :math:`\epsilon` the target is
    :math:`q = (1-\epsilon)\,\mathrm{onehot}(y) + \epsilon / k`.

    Args:
      logits: ``[b, k]``, unnormalised.
      labels: ``[b]``, integers 0..k-1.
      label_smoothing: :math:`\epsilon` in [0, 1).

    Returns:
      ``[b]``, in nats.
    """
    chex.assert_rank([logits, labels], [2, 1])
    if label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def accuracy(logits: Float[Array, "b k"], labels: Int[Array, "b"]) -> Float[Array, ""]:
    """Fraction of examples whose largest logit is the label's."""
    chex.assert_rank([logits, labels], [2, 1])
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
