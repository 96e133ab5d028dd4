"""Crop, flip and normalisation, on the device and inside the step."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
      smallest: share of an image's area that a random part, scaled, has at least; 0 for the whole image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    pad_mode: str = "constant"
    flip: bool = False
    smallest: float = 0.0


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
STREAMED = Recipe((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), flip=True, smallest=0.08)

# What may be chosen in place of a data set's own: random parts of an image, shifts by up to two pixels, or nothing.
AUGMENTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "crops": {"pad": 0, "flip": True, "smallest": 0.08},
    "mild": {"pad": 0, "flip": True, "smallest": 0.5},
    "shifts": {"pad": 2, "pad_mode": "constant", "flip": False, "smallest": 0.0},
    "none": {"pad": 0, "flip": False, "smallest": 0.0},
}


def recipe(name: str) -> Recipe | None:
    """The recipe of a data set, turned or not; noise is treated as CIFAR-10, so that it costs as much. Or None."""
    return _CIFAR if re.fullmatch(r"random(_\d+){3}", name) else RECIPES.get(re.sub(r"^rotated_\d+_|:.*", "", name))


def derived(image: UInt8[np.ndarray, "n h w c"]) -> Recipe:
    """A recipe that normalises by the images' own mean and deviation, channel by channel, and changes nothing else."""
    counts = [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(image.shape[-1])]
    values, n = np.arange(256.0), image[..., 0].size
    mean = [float(count @ values) / n for count in counts]
    spread = [math.sqrt(float(count @ (values - m) ** 2) / n) for count, m in zip(counts, mean, strict=True)]
    return Recipe(tuple(mean), tuple(std or 1.0 for std in spread))  # of one value alone: nothing to scale


def treated(recipe: Recipe, augment: str, mean: Sequence[float] = (), std: Sequence[float] = ()) -> Recipe:
    """A recipe with another augmentation, mean and deviation.

    Args:
      recipe: the data set's own.
      augment: a key of :data:`AUGMENTS`.
      mean: of each channel, in units of 1/255; empty for the recipe's.
      std: likewise.

    Raises:
      ValueError: if the augmentation is not known, or there is not one number for each channel.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment {augment!r}: choose {', '.join(AUGMENTS)}")
    recipe = recipe._replace(**AUGMENTS[augment])
    channels = len(recipe.mean)
    for given in filter(None, (mean, std)):
        if len(given) != channels or (given is std and min(given) <= 0):
            raise ValueError(f"mean {tuple(mean)}, std {tuple(std)}: give {channels} numbers each, deviations above 0")
    return recipe._replace(mean=tuple(mean) or recipe.mean, std=tuple(std) or recipe.std)


def random_crop(image: Array, key: Key, pad: int, mode: str) -> Array:
    """Pads every side by ``pad`` and cuts a window of the old size out of each image: ``[b, h, w, c]``."""
    _, h, w, c = image.shape
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    corner = jax.random.randint(key, (image.shape[0], 2), 0, 2 * pad + 1)

    def window(one: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice(one, (at[0], at[1], 0), (h, w, c))

    return jax.vmap(window)(padded, corner)


def random_part(image: Array, key: Key, smallest: float) -> Array:
    """A random part of each image of ``[b, h, w, c]`` bytes, scaled bilinearly to its size.

    As :func:`jaxlocal.data.images.random_box`: of ten tries the first that lies within the image; else all of it.
    """
    _, h, w, c = image.shape

    def part(one: Array, key: Key) -> Array:
        area_key, ratio_key, left_key, upper_key = jax.random.split(key, 4)
        area = jax.random.uniform(area_key, (10,), minval=smallest) * (h * w)
        ratio = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=math.log(3 / 4), maxval=math.log(4 / 3)))
        widths, heights = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)
        inside = (widths <= w) & (heights <= h)
        chosen = jnp.argmax(inside)
        width = jnp.where(inside[chosen], widths[chosen], w)
        height = jnp.where(inside[chosen], heights[chosen], h)
        left = jax.random.uniform(left_key) * (w - width)
        upper = jax.random.uniform(upper_key) * (h - height)
        scale = jnp.stack([h / height, w / width])
        translation = -jnp.stack([upper, left]) * scale
        return jax.image.scale_and_translate(
            one.astype(jnp.float32), (h, w, c), (0, 1), scale, translation, "linear", antialias=True
        )

    parts = jax.vmap(part)(image, jax.random.split(key, image.shape[0]))
    return jnp.clip(jnp.round(parts), 0, 255).astype(jnp.uint8)


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
            image = random_part(image, crop_key, recipe.smallest) if recipe.smallest else image
            image = random_crop(image, crop_key, recipe.pad, recipe.pad_mode) if recipe.pad else image
            image = random_flip(image, flip_key) if recipe.flip else image
        pixels = image.astype(jnp.float32) / 255
        return Batch(normalise(image, recipe), label, pixels)

    return prepare
