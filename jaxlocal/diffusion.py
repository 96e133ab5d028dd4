r"""The noising of class embeddings that NoProp undoes: schedules and their coefficients.

.. math:: q(z_t \mid y) = \mathcal N(\sqrt{\bar\alpha_t}\, u_y,\; 1 - \bar\alpha_t)

References:
  Li, Teh, Pascanu. NoProp: Training Neural Networks without Full Back-propagation or Full
  Forward-propagation. arXiv 2503.24322, section 2 and appendix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlocal.variables import Key


class Schedule(NamedTuple):
    r"""Signal and noise of the steps, ``T + 1`` numbers from noise to label.

    Attributes:
      signal: :math:`\bar\alpha_0 \dots \bar\alpha_T`, rising, in [0, 1).
    """

    signal: tuple[float, ...]

    def snr(self, t: int) -> float:
        """Signal over noise, as variances."""
        return self.signal[t] / (1 - self.signal[t])

    def posterior(self, t: int) -> tuple[float, float, float]:
        r"""``(a, b, c)`` of :math:`q(z_t \mid z_{t-1}, y) = \mathcal N(a\, u_y + b\, z_{t-1},\; c)`, t from 1."""
        before, after = self.signal[t - 1], self.signal[t]
        alpha = before / after
        a = math.sqrt(after) * (1 - alpha) / (1 - before)
        b = math.sqrt(alpha) * (1 - after) / (1 - before)
        return a, b, (1 - after) * (1 - alpha) / (1 - before)

    def mean(self, t: int, u: Float[Array, "b d"], z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        r"""Of :math:`q(z_t \mid z_{t-1}, y)`; of the last step where t is -1."""
        a, b, _ = self.posterior(t % len(self.signal))
        return a * u + b * z


def cosine_schedule(steps: int, offset: float = 0.008) -> Schedule:
    r"""Nichol and Dhariwal's (2021, equation 17), from its end to its beginning.

    .. math:: \bar\alpha_t = \cos^2\!\left(\frac{1 - t / T + s}{1 + s} \cdot \frac\pi2\right)

    Args:
      steps: :math:`T`.
      offset: :math:`s`.
    """
    angles = (1 - np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2
    return Schedule(tuple(np.square(np.cos(angles)).tolist()))


def noised(u: Float[Array, "b d"], signal: float, noise: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """A draw from :math:`q(z | y)`."""
    return math.sqrt(signal) * u + math.sqrt(1 - signal) * noise


def gaussian_kl(u: Float[Array, "b d"], signal: float) -> Float[Array, "b"]:
    r""":math:`\mathrm{KL}(\mathcal N(\sqrt{s}\, u,\, 1 - s) \,\|\, \mathcal N(0, 1))` at signal :math:`s`."""
    d = u.shape[-1]
    return (signal * jnp.sum(u**2, axis=-1) - d * signal - d * math.log1p(-signal)) / 2


def normal(key: Key, like: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Noise of the shape and dtype of another array; the same numbers in every precision."""
    return jax.random.normal(key, like.shape, jnp.float32).astype(like.dtype)


def normal_of(image: Float[Array, "b ..."], index: int, like: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Noise of the shape and dtype of another array that follows from each image: the same alone and in any batch.

    Its key is a hash of the image's values as bfloat16, of which all precisions of the computation have the same. The
    hash is a sum of integers, so it is the same in whatever order a device adds them.

    Args:
      image: what each example's noise follows from.
      index: which of an image's draws; they are independent.
      like: of the shape and dtype.
    """
    # Of this kind alone are draws for mapped keys each key's own, whatever kind is the default.
    hash_key, key = jax.random.split(jax.random.key(index, impl="threefry2x32"))
    values = jax.lax.bitcast_convert_type(image.astype(jnp.bfloat16), jnp.uint16).reshape(len(image), -1)
    factors = jax.random.bits(hash_key, values.shape[1:], jnp.uint32) | jnp.uint32(1)  # odd: no bit of a value is lost
    hashes = jnp.sum(values.astype(jnp.uint32) * factors, axis=1, dtype=jnp.uint32)  # modulo 2^32
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], jnp.float32))(keys).astype(like.dtype)
