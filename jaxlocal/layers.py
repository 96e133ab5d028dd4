"""The layers that units and heads are made of, with the initialisation of the papers' code.

Convolutions draw from N(0, 2 / (k k out)) (He et al. 2015, fan-out), dense layers
from U(-1/sqrt(in), 1/sqrt(in)) for weights and biases (PyTorch's default, which the
AugLocal and InfoPro code keeps). No layer fixes a dtype: each computes in the
dtype of its inputs and parameters, so precision is decided in one place.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Float

BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def conv(features: int, kernel: int, *, strides: int = 1, name: str) -> nn.Conv:
    """A ``kernel x kernel`` convolution without bias, padded by ``kernel // 2`` on every side."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=strides,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


def dense(x: Float[Array, "b f"], features: int, *, use_bias: bool = True, name: str) -> Float[Array, "b g"]:
    """A dense layer applied to ``x``; the bias' range follows from the number of inputs."""
    bound = 1 / np.sqrt(x.shape[-1])

    def bias_init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel_init = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nn.Dense(features, use_bias, kernel_init=kernel_init, bias_init=bias_init, name=name)(x)


def global_average_pool(x: Float[Array, "b ... c"]) -> Float[Array, "b c"]:
    """Mean over every axis between batch and channels (none for ``[b, c]``)."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


def adaptive_average_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Averages over a ``size x size`` grid of bins; bin i spans floor(i h / size) .. ceil((i + 1) h / size)."""
    b, h, w, c = x.shape
    if h % size == 0 and w % size == 0:
        return jnp.mean(x.reshape(b, size, h // size, size, w // size, c), axis=(2, 4))
    rows, columns = (jnp.asarray(_bins(n, size), x.dtype) for n in (h, w))
    return jnp.einsum("bhwc,ph,qw->bpqc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _bins(n: int, size: int) -> np.ndarray:
    """Row p averages the inputs of bin p: ``[size, n]``."""
    start = [i * n // size for i in range(size)]
    end = [-(-(i + 1) * n // size) for i in range(size)]
    return np.array([[(a <= j < b) / (b - a) for j in range(n)] for a, b in zip(start, end, strict=True)])
