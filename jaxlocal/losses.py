"""Losses: pure functions of arrays, one value per example."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlocal.layers import safe_sqrt

Loss = Callable[[Float[Array, "b ... k"], Int[Array, "b ..."]], Float[Array, "b"]]
TargetLoss = Callable[[Float[Array, "b ... f"], Float[Array, "#b ... f"]], Float[Array, "b"]]


def cross_entropy(
    logits: Float[Array, "b ... k"], labels: Int[Array, "b ..."], *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
    r"""Softmax cross-entropy, :math:`-\sum_k q_k \log p_k`; the mean over positions, where there are any.

    With smoothing :math:`\epsilon` the target is
    :math:`q = (1-\epsilon)\,\mathrm{onehot}(y) + \epsilon / k`.

    Args:
      logits: ``[b, ..., k]``, unnormalised.
      labels: ``[b, ...]``, integers 0..k-1.
      label_smoothing: :math:`\epsilon` in [0, 1).

    Returns:
      ``[b]``, in nats.
    """
    chex.assert_shape(labels, logits.shape[:-1])
    if label_smoothing == 0:
        values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        values = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
    return values if values.ndim == 1 else jnp.mean(values, axis=tuple(range(1, values.ndim)))


def similarity_matching(features: Float[Array, "b d"], labels: Int[Array, "b"], num_classes: int) -> Float[Array, "b"]:
    r"""Squared distance between the similarities of features and of labels (Nokland and Eidnes 2019, eq. 1).

    .. math:: \ell_i = \frac1b \sum_j (S(h)_{ij} - S(\mathrm{onehot}(y))_{ij})^2

    where :math:`S` is the cosine similarity of rows from which their mean was taken.

    Args:
      features: ``[b, d]``, d >= 2.
      labels: ``[b]``, integers 0..k-1.
      num_classes: k.
    """
    chex.assert_rank([features, labels], [2, 1])
    targets = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    return jnp.mean((_similarity(features) - _similarity(targets)) ** 2, axis=1)


def _similarity(x: Float[Array, "b d"]) -> Float[Array, "b b"]:
    x = x - jnp.mean(x, axis=1, keepdims=True)
    x = x / (1e-8 + safe_sqrt(jnp.sum(x**2, axis=1, keepdims=True)))
    return jnp.clip(jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST), -1, 1)


def reconstruction(logits: Float[Array, "b h w c"], pixels: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Binary cross-entropy between an image and its reconstruction, mean over pixels (InfoPro, appendix).

    Args:
      logits: ``[b, h, w, c]``; the reconstruction is their sigmoid.
      pixels: ``[b, h, w, c]``, the image in [0, 1].
    """
    chex.assert_equal_shape([logits, pixels])
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, pixels), axis=(1, 2, 3))


def supervised_contrastive(
    features: Float[Array, "b d"], labels: Int[Array, "b"], *, temperature: float = 0.07
) -> Float[Array, "b"]:
    r"""Supervised contrastive loss (Khosla et al. 2020, eq. 2), one view per example.

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{j \in P_i}
              \log \frac{\exp(z_i z_j / T)}{\sum_{k \ne i} \exp(z_i z_k / T)}

    with :math:`z` the normalised features and :math:`P_i` the other examples of the same
    class; an example that has none counts as zero.

    Args:
      features: ``[b, d]``.
      labels: ``[b]``.
      temperature: :math:`T`.
    """
    chex.assert_rank([features, labels], [2, 1])
    norm = safe_sqrt(jnp.sum(features**2, axis=1, keepdims=True))
    z = features / jnp.maximum(norm, 1e-12)
    scores = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
    itself = jnp.eye(len(labels), dtype=bool)
    log_p = jax.nn.log_softmax(jnp.where(itself, jnp.finfo(scores.dtype).min, scores), axis=1)
    positive = (labels[:, None] == labels) & ~itself
    count = jnp.maximum(1, jnp.sum(positive, axis=1)).astype(log_p.dtype)
    return -jnp.sum(jnp.where(positive, log_p, 0.0), axis=1) / count


def inner_product(output: Float[Array, "b ... f"], target: Float[Array, "#b ... f"]) -> Float[Array, "b"]:
    """``<output, target>``: its gradient is the target itself, whatever the output (DRTP, Frenkel et al. 2021)."""
    return jnp.sum(output * target, axis=tuple(range(1, output.ndim)))


def squared_distance(output: Float[Array, "b ... f"], target: Float[Array, "#b ... f"]) -> Float[Array, "b"]:
    """``|output - target|^2 / 2`` over features, mean over pixels or time steps: its gradient is the difference."""
    return _mean_of_positions((output - target) ** 2 / 2)


def absolute_distance(output: Float[Array, "b ... f"], target: Float[Array, "#b ... f"]) -> Float[Array, "b"]:
    """``|output - target|`` over features, mean over pixels or time steps: its gradient is the difference's sign."""
    return _mean_of_positions(jnp.abs(output - target))


def logistic(output: Float[Array, "b ... f"], target: Float[Array, "#b ... f"]) -> Float[Array, "b"]:
    """Cross-entropy of the features as independent logits: its gradient is the difference of the sigmoids."""
    return _mean_of_positions(optax.sigmoid_binary_cross_entropy(output, jax.nn.sigmoid(target)))


def _mean_of_positions(x: Float[Array, "b ... f"]) -> Float[Array, "b"]:
    return jnp.mean(jnp.sum(x, axis=-1), axis=tuple(range(1, x.ndim - 1)))


def accuracy(logits: Float[Array, "b ... k"], labels: Int[Array, "b ..."]) -> Float[Array, ""]:
    """Fraction of examples, or of all their positions, whose largest logit is the label's."""
    chex.assert_shape(labels, logits.shape[:-1])
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
