"""The layers that units and heads are made of, with the initialisation of the papers' code.

Convolutions draw from N(0, 2 / (k k out)) (He et al. 2015, fan-out), dense layers
from U(-1/sqrt(in), 1/sqrt(in)) for weights and biases (PyTorch's default, which the
AugLocal and InfoPro code keeps). No layer fixes a dtype: each computes in the
dtype of its inputs and parameters, so precision is decided in one place. Only sums do not: of more than
a few values they are accumulated in float32 or wider, whatever the dtype (:func:`in_float32`, :func:`spread`).
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Float

from jaxlocal.convolution import convolve
from jaxlocal.variables import accumulator

ACTIVATIONS = {"relu": nn.relu, "leaky_relu": nn.leaky_relu, "tanh": nn.tanh, "sigmoid": nn.sigmoid}  # slope 0.01

MOMENTUM, EPSILON = 0.9, 1e-5  # of batch normalisation, in all of the papers' code

_batch_axis: ContextVar[str | None] = ContextVar("batch_axis", default=None)


def in_float32(x: Array) -> Array:
    """The array in float32, unless it is wider."""
    return x.astype(accumulator(x.dtype))


def spread(x: Array, like: Array) -> Array:
    """``x``, broadcast to the shape and dtype of ``like``. Its gradient is a sum, accumulated in float32 or wider.

    That of an ordinary broadcast is accumulated in the dtype itself: in bfloat16, a sum of ones stops at 256.
    """
    return jnp.broadcast_to(in_float32(x), like.shape).astype(like.dtype)


class Biased(nn.Module):
    """A layer, and a bias for each of its features: Flax's own would sum the bias' gradient in the layer's dtype.

    Attributes:
      layer: without a bias; its variables are those of this module, beside ``bias``.
      bias_init: draws the bias.
    """

    layer: nn.Module
    bias_init: Callable[..., Array]

    def setup(self) -> None:
        """Variables of the layer and the bias get no names between."""
        nn.share_scope(self, self.layer)

    @nn.compact
    def __call__(self, x: Float[Array, "b ... f"]) -> Float[Array, "b ... g"]:
        y = self.layer(x)
        return y + spread(self.param("bias", self.bias_init, y.shape[-1:]), y)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with the papers' constants.

    Statistics are over all axes but the last, and over all devices within :func:`batch_norm_over`; in float32 or
    wider. They are taken around one of the values themselves: so a mean much larger than the deviation costs no
    precision, and the way back needs nothing but the input. Running ones average the biased variance, as Flax's.

    Attributes:
      use_running_average: whether to use the running statistics in place of the batch's.
    """

    use_running_average: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... c"]:
        features, wide = x.shape[-1:], in_float32(x)
        scale = in_float32(self.param("scale", initializers.ones, features))
        bias = in_float32(self.param("bias", initializers.zeros, features))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        mean, var = running_mean.value, running_var.value
        if not self.use_running_average:
            mean, var = _moments(wide)
            if axis := _batch_axis.get():
                of_all = jax.lax.pmean(mean, axis)
                mean, var = of_all, jax.lax.pmean(var + jnp.square(mean - of_all), axis)
            if not self.is_initializing():
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * var
        return ((wide - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias).astype(x.dtype)


def known_activation(name: str) -> str:
    """The name itself.

    Raises:
      ValueError: if it is none of :data:`ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return name


@contextmanager
def batch_norm_over(axis: str | None) -> Iterator[None]:
    """Batch norms traced in here take their statistics over a mapped axis, too; None: over their own batch."""
    token = _batch_axis.set(axis)
    try:
        yield
    finally:
        _batch_axis.reset(token)


def conv(
    features: int, kernel: int, *, strides: int = 1, groups: int = 1, use_bias: bool = False, name: str
) -> nn.Module:
    """A ``kernel x kernel`` convolution, padded by ``kernel // 2`` on every side; a bias starts at zero."""
    layer = functools.partial(
        nn.Conv,
        features,
        (kernel, kernel),
        strides=strides,
        padding=kernel // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated_cls=_convolve,
    )
    return Biased(layer(parent=None), initializers.zeros, name=name) if use_bias else layer(name=name)


def _convolve() -> Callable[..., Array]:
    return convolve


def dense(
    x: Float[Array, "b f"], features: int, *, use_bias: bool = True, zero: bool = False, name: str
) -> Float[Array, "b g"]:
    """A dense layer applied to ``x``, its weights zero if asked; the bias' range follows from the number of inputs."""
    bound = 1 / np.sqrt(x.shape[-1])

    def bias_init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel_init = initializers.zeros if zero else initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    layer = functools.partial(nn.Dense, features, use_bias=False, kernel_init=kernel_init)
    return (Biased(layer(parent=None), bias_init, name=name) if use_bias else layer(name=name))(x)


def normed(
    x: Float[Array, "b ... f"], kind: str, *, bias: bool = False, epsilon: float = EPSILON, name: str
) -> Float[Array, "b ... f"]:
    """A norm over features, as transformers have it: ``layer`` (mean and deviation) or ``rms``."""
    if kind == "rms":
        return nn.RMSNorm(epsilon=epsilon, name=name)(x)
    return nn.LayerNorm(epsilon=epsilon, use_bias=bias, name=name)(x)


def global_average_pool(x: Float[Array, "b ... c"]) -> Float[Array, "b c"]:
    """Mean over every axis between batch and channels (none for ``[b, c]``)."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


def adaptive_average_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Averages over a ``size x size`` grid of bins; bin i spans floor(i h / size) .. ceil((i + 1) h / size)."""
    b, h, w, c = x.shape
    if h % size == 0 and w % size == 0:
        return jnp.mean(x.reshape(b, size, h // size, size, w // size, c), axis=(2, 4))
    return _resample(x, _bins(h, size), _bins(w, size))


def pool_until(x: Float[Array, "b h w c"], features: int) -> Float[Array, "b p q c"]:
    """Averages until an image has at most so many numbers, or one pixel is left (PredSim, code).

    The window doubles in height and in width by turns. As in the authors' code, zeros are averaged in where a window
    sticks out, and where windows do not divide the side, a few pixels at its end may be left out.
    """
    _, h, w, c = x.shape
    window, out, turn = [1, 1], [h, w], 0
    while math.prod(out) * c > features and out != [1, 1]:
        window[turn] *= 2
        out[turn] = math.ceil(x.shape[1 + turn] / window[turn])
        turn = 1 - turn
    padding = [((k * (o - n // k)) // 2,) * 2 for k, o, n in zip(window, out, (h, w), strict=True)]
    total = nn.pool(in_float32(x), 0.0, jax.lax.add, tuple(window), strides=tuple(window), padding=padding)
    return (total / float(math.prod(window))).astype(x.dtype)


def bilinear_resize(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Bilinear interpolation in which the corner pixels stay at the corners (PyTorch's ``align_corners``)."""
    _, h, w, _ = x.shape
    return x if (h, w) == (height, width) else _resample(x, _hats(h, height), _hats(w, width))


def as_image(x: Float[Array, "b ... c"]) -> Float[Array, "b h w c"]:
    """Images as they are; the features of a dense block, ``[b, c]``, as images of one pixel."""
    return x if x.ndim == 4 else x.reshape(x.shape[0], 1, 1, -1)


def flatten(x: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
    """One row per image, channel by channel, as in the papers' code."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def scaled(features: int, width: float) -> int:
    """Features of a hidden layer at a relative width, rounded down, at least one."""
    return max(1, int(features * width))


def safe_sqrt(x: Array) -> Array:
    """The square root, with a derivative of zero (not infinity) at zero, as PyTorch's ``std`` has."""
    return jnp.where(x == 0, 0.0, jnp.sqrt(jnp.where(x == 0, 1.0, x)))


@jax.custom_vjp
def _moments(x: Float[Array, "b ... c"]) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Mean and biased variance. Around one of the values: as both are sums, they are taken in one pass.

    They are there at once, by the barrier; else the compiler puts off running statistics and keeps ``x`` for them.
    """
    axes = tuple(range(x.ndim - 1))
    around = x[(0,) * len(axes)]
    offset = jnp.mean(x - around, axes)
    var = jnp.maximum(jnp.mean(jnp.square(x - around), axes) - jnp.square(offset), 0)
    return jax.lax.optimization_barrier((around + offset, var))


def _moments_forward(x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    mean, var = _moments(x)
    return (mean, var), (x, mean)


def _moments_backward(saved: tuple[Array, Array], slopes: tuple[Array, Array]) -> tuple[Array]:
    (x, mean), (of_mean, of_var) = saved, slopes
    return ((of_mean + 2 * of_var * (x - mean)) / (x.size // x.shape[-1]),)


_moments.defvjp(_moments_forward, _moments_backward)


def _resample(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Each output pixel as a weighted sum of input pixels: ``rows`` is ``[out, in]``, likewise ``columns``."""
    weights = (jnp.asarray(matrix, x.dtype) for matrix in (rows, columns))
    return jnp.einsum("bhwc,ph,qw->bpqc", x, *weights, precision=jax.lax.Precision.HIGHEST)


def _hats(n: int, size: int) -> np.ndarray:
    """Row p interpolates linearly between the two of ``n`` inputs that point p of ``size`` lies between."""
    at = np.linspace(0, n - 1, size)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))


def _bins(n: int, size: int) -> np.ndarray:
    """Row p averages the inputs of bin p: ``[size, n]``."""
    start = [i * n // size for i in range(size)]
    end = [-(-(i + 1) * n // size) for i in range(size)]
    return np.array([[(a <= j < b) / (b - a) for j in range(n)] for a, b in zip(start, end, strict=True)])
