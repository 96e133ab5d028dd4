"""Crop, flip and normalisation, on the device and inside the step."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from jaxlocal.feed import Prepare
from jaxlocal.objective import Batch
from jaxlocal.variables import Key


class Examples(NamedTuple):
    """A whole split on the device, and which of its examples make the batch.

    Attributes:
      image: ``[n, h, w, c]``, 0..255.
      label: ``[n]``.
      chosen: ``[b]``, their positions in the split.
    """

    image: UInt8[Array, "n h w c"]
    label: Int32[Array, "n"]
    chosen: Int32[Array, "b"]


class Decoded(NamedTuple):
    """The examples of one step.

    Attributes:
      image: ``[b, h, w, c]``, 0..255.
      label: ``[b]``.
    """

    image: UInt8[Array, "b h w c"]
    label: Int32[Array, "b"]


class Recipe(NamedTuple):
    """How the images of a data set are treated.

    Attributes:
      mean: per channel, in units of 1/255.
      std: per channel, in units of 1/255.
      pad: pixels of padding on every side, before a random crop to the old size.
      pad_mode: of ``jnp.pad``, ``reflect`` or ``constant`` (zeros).
      flip: whether half of the images are mirrored.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    pad_mode: str = "constant"
    flip: bool = False


_CIFAR = Recipe((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), pad=4, pad_mode="reflect", flip=True)
_HALF = (127.5, 127.5, 127.5)

# As in the AugLocal code, where it covers the data set; the digits sets are only normalised.
RECIPES = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "svhn_cropped": Recipe(_HALF, _HALF, pad=2),
    "stl10": Recipe(_HALF, _HALF, pad=4, flip=True),
    "mnist": Recipe((33.3,), (78.6,)),
    "fashion_mnist": Recipe((72.9,), (90.0,)),
    "digits": Recipe((77.9,), (95.9,)),
}
# Of ImageNet, for every set that is streamed: crops are taken where images are decoded.
STREAMED = Recipe((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), flip=True)


def recipe(name: str) -> Recipe:
    """The recipe of a data set in memory, turned or not; noise is treated as CIFAR-10, so that it costs as much."""
    return _CIFAR if name.startswith("random_") else RECIPES[re.sub(r"^rotated_\d+_", "", name)]


def random_crop(image: Array, key: Key, pad: int, mode: str) -> Array:
    """Pads every side by ``pad`` and cuts a window of the old size out of each image: ``[b, h, w, c]``."""
    _, h, w, c = image.shape
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    corner = jax.random.randint(key, (image.shape[0], 2), 0, 2 * pad + 1)

    def window(one: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice(one, (at[0], at[1], 0), (h, w, c))

    return jax.vmap(window)(padded, corner)


def random_flip(image: Array, key: Key) -> Array:
    """Mirrors each image of ``[b, h, w, c]`` left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(image.shape[0], 1, 1, 1))
    return jnp.where(flip, image[:, :, ::-1], image)


def normalise(image: UInt8[Array, "b h w c"], recipe: Recipe) -> Float[Array, "b h w c"]:
    """``(image - mean) / std`` in float32."""
    mean, std = (jnp.asarray(x, jnp.float32) for x in (recipe.mean, recipe.std))
    return (image.astype(jnp.float32) - mean) / std


def decoded(data: Examples | Decoded) -> Decoded:
    """The examples of a step, gathered if they lie in a whole split."""
    return Decoded(data.image[data.chosen], data.label[data.chosen]) if isinstance(data, Examples) else data


def example_images(n: int, shape: tuple[int, ...]) -> Batch:
    """What ``n`` images of a shape ``(h, w, c)`` look like to a network: shapes and dtypes, no values."""
    image = jax.ShapeDtypeStruct((n, *shape), jnp.float32)
    return Batch(image, jax.ShapeDtypeStruct((n,), jnp.int32), image)  # type: ignore[arg-type]


def prepare_with(recipe: Recipe) -> Prepare:
    """Augments a batch when training, and normalises it; one of :class:`Examples` is gathered first."""

    def prepare(data: Examples | Decoded, key: Key, *, train: bool) -> Batch:
        image, label = decoded(data)
        if train:
            crop_key, flip_key = jax.random.split(key)
            image = random_crop(image, crop_key, recipe.pad, recipe.pad_mode) if recipe.pad else image
            image = random_flip(image, flip_key) if recipe.flip else image
        pixels = image.astype(jnp.float32) / 255
        return Batch(normalise(image, recipe), label, pixels)

    return prepare
