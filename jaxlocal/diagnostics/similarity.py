r"""Linear CKA: how alike two representations of the same examples are.

.. math:: \mathrm{CKA}(X, Y) = \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F \|Y^\top Y\|_F}
          = \frac{\langle K, L \rangle}{\|K\|_F \|L\|_F}, \qquad K = X X^\top,\; L = Y Y^\top

of features from which the mean over the examples was taken (Kornblith et al. 2019, section 3). It is 1 for
representations that differ by a rotation, a shift and a scale. The second form needs no more than the matrices of
examples by examples, however many features there are.

References:
  Kornblith, Norouzi, Lee, Hinton. Similarity of Neural Network Representations Revisited. ICML 2019. arXiv 1905.00414.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlocal.layers import in_float32


def centred_gram(features: Float[Array, "n ..."]) -> Float[Array, "n n"]:
    """Products of every two examples' features, the mean taken off; in float32 or wider."""
    x = in_float32(features.reshape(len(features), -1))
    x = x - jnp.mean(x, axis=0)
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def cka(a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, ""]:
    """CKA from the matrices of :func:`centred_gram`; NaN if features are the same for all examples."""
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    return jnp.sum(a * b)


def linear_cka(x: Float[Array, "n ..."], y: Float[Array, "n ..."]) -> Float[Array, ""]:
    """CKA of two representations of the same n examples, between 0 and 1.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (50, 3))
      >>> f"{linear_cka(x, 1 - 2 * x[:, ::-1]):.3f}"
      '1.000'
    """
    return cka(centred_gram(x), centred_gram(y))
