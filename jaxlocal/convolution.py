"""A convolution whose weight gradient is quick on CPUs.

XLA's CPU backend computes it as one convolution whose window is the whole image and whose features are the batch,
which leaves the cache: 3x3, 32x32 pixels, 16 channels, batch 128 took 27 ms on one core. Here it is the sum over parts
of the batch, which took 13. On other devices it is the compiler's own.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxlocal.variables import accumulator

PART = 16  # examples: their values at a pixel fill a line of the cache (8 to 64 were measured, at 16 to 64 channels)
NHWC = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """What a convolution does beside its numbers; arguments of :func:`jax.lax.conv_general_dilated`."""

    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimension_numbers: Any
    feature_group_count: int
    precision: Any


def convolve(
    x: Float[Array, "b ..."],
    kernel: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "b ..."]:
    """:func:`jax.lax.conv_general_dilated`, as :class:`flax.linen.Conv` calls it. It has no forward-mode derivative."""
    pairs = tuple((int(low), int(high)) for low, high in padding)
    sizes = (tuple(window_strides), pairs, tuple(lhs_dilation), tuple(rhs_dilation))
    return _convolve(x, kernel, Geometry(*sizes, dimension_numbers, feature_group_count, precision))


def _own(x: Array, kernel: Array, geometry: Geometry) -> Array:
    return lax.conv_general_dilated(x, kernel, **geometry._asdict())


def _backward(geometry: Geometry, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    _, of_input = jax.vjp(lambda x: _own(x, kernel, geometry), x)

    def own(x: Array, kernel: Array, dy: Array) -> Array:
        return jax.vjp(lambda kernel: _own(x, kernel, geometry), kernel)[1](dy)[0]

    if not _is_plain(x, geometry):
        return *of_input(dy), own(x, kernel, dy)
    in_parts = functools.partial(_in_parts, geometry=geometry)
    return *of_input(dy), lax.platform_dependent(x, kernel, dy, cpu=in_parts, default=own)


_convolve = jax.custom_vjp(_own, nondiff_argnums=(2,))
_convolve.defvjp(lambda x, kernel, geometry: (_own(x, kernel, geometry), (x, kernel)), _backward)


def _is_plain(x: Array, geometry: Geometry) -> bool:
    """Whether it is one of images, and of one group."""
    numbers = geometry.dimension_numbers
    images = x.ndim == 4 and numbers == lax.conv_dimension_numbers(x.shape, (1,) * 4, NHWC)
    return images and geometry.feature_group_count == 1 and set(geometry.lhs_dilation) == {1}


@jax.named_scope("weight_gradient")
def _in_parts(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], dy: Float[Array, "b p q d"], *, geometry: Geometry
) -> Float[Array, "k l c d"]:
    """The weight gradient: the sum of those of :data:`PART` examples each, and of the rest of the batch."""
    dtype = accumulator(x.dtype)

    def part(x: Array, dy: Array) -> Array:
        return _of_part(x, dy, kernel.shape[:2], geometry, dtype)

    whole = len(x) // PART * PART
    nothing = jnp.zeros((x.shape[3], *kernel.shape[:2], dy.shape[3]), dtype)
    total = part(x[whole:], dy[whole:]) if whole < len(x) else nothing
    if whole:
        parts = tuple(of[:whole].reshape(-1, PART, *of.shape[1:]) for of in (x, dy))
        total, _ = lax.scan(lambda total, of: (total + part(*of), None), total, parts)
    return total.transpose(1, 2, 0, 3).astype(kernel.dtype)


def _of_part(x: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry, dtype: Any) -> Float[Array, "c k l d"]:
    """One convolution: channels take the batch's place, examples that of the features, and ``dy`` the kernel's.

    They are brought into this order first: within a loop XLA's CPU backend knows no other one.
    """
    sides = zip(x.shape[1:3], dy.shape[1:3], kernel, geometry.window_strides, geometry.rhs_dilation, strict=True)
    reach = [(p - 1) * stride + (k - 1) * dilation + 1 - n for n, p, k, stride, dilation in sides]
    return lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        geometry.rhs_dilation,
        [(low, more - low) for (low, _), more in zip(geometry.padding, reach, strict=True)],
        rhs_dilation=geometry.window_strides,
        dimension_numbers=NHWC,
        precision=geometry.precision,
        preferred_element_type=dtype,
    )
