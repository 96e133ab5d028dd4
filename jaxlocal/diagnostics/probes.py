r"""Linear probes: how well a linear classifier, fitted to a unit's output, tells the classes.

The probe is ridge regression onto one-hot labels, in closed form:

.. math:: W = (X^\top X / n + \lambda I)^{-1} X^\top Y / n

of features X scaled to mean 0 and variance 1, and of targets Y without their mean. The class of the largest output is
the prediction.

References:
  Alain, Bengio. Understanding intermediate layers using linear classifier probes. arXiv 1610.01644.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlocal.layers import adaptive_average_pool, in_float32

_EXACT = jax.lax.Precision.HIGHEST


class Probe(NamedTuple):
    """A linear classifier of scaled features.

    Attributes:
      mean: of the features.
      deviation: of the features; 1 where they do not vary.
      weights: W.
      bias: the mean of the targets.
    """

    mean: Float[Array, "d"]
    deviation: Float[Array, "d"]
    weights: Float[Array, "d k"]
    bias: Float[Array, "k"]


def pooled(features: Float[Array, "n ..."], side: int = 2) -> Float[Array, "n d"]:
    """Features as a probe takes them: images averaged to ``side`` x ``side``, everything else as it is."""
    x = in_float32(features)
    if x.ndim == 4 and min(x.shape[1:3]) > side:
        x = adaptive_average_pool(x, side)
    return x.reshape(len(x), -1)


def fit_probe(x: Float[Array, "n d"], labels: Int[Array, "n"], num_classes: int, strength: float = 1e-2) -> Probe:
    r"""Fits a probe.

    Args:
      x: features.
      labels: integers 0..k-1.
      num_classes: k.
      strength: :math:`\lambda`, above 0; features have variance 1.
    """
    mean, deviation = jnp.mean(x, axis=0), jnp.std(x, axis=0)
    deviation = jnp.where(deviation > 0, deviation, 1.0)
    x = (x - mean) / deviation
    second = jnp.matmul(x.T, x, precision=_EXACT) / len(x) + strength * jnp.eye(x.shape[1], dtype=x.dtype)
    # X has no mean, so that of Y changes nothing, and targets need not be written out: classes may be many.
    product = jax.ops.segment_sum(x, labels, num_classes).T / len(x)
    bias = jnp.bincount(labels, length=num_classes).astype(x.dtype) / len(x)
    return Probe(mean, deviation, jax.scipy.linalg.solve(second, product, assume_a="pos"), bias)


def probe_accuracy(probe: Probe, x: Float[Array, "n d"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """The fraction of examples that a probe tells the class of; scores of a thousand are held at a time."""

    def told(x: Float[Array, "d"]) -> Int[Array, ""]:
        return jnp.argmax(jnp.matmul((x - probe.mean) / probe.deviation, probe.weights, precision=_EXACT) + probe.bias)

    return jnp.mean(jax.lax.map(told, x, batch_size=1000) == labels, dtype=jnp.float32)
