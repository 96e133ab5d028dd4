"""One way to read an image, for training, evaluation and predictions alike: bytes in, pixels out."""

import contextlib
import functools
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

Box = tuple[int | float, int | float, int | float, int | float]  # left, upper, right, lower

# What is read: not what would start other programs, as Pillow's reader of PostScript does.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # how Pillow calls what an orientation asks for


class UnreadableError(ValueError):
    """An example cannot be read."""


def read(
    source: bytes | str | os.PathLike[str], box: Callable[[int, int], Box], shape: tuple[int, ...]
) -> UInt8[np.ndarray, "h w c"]:
    """Part of an image, scaled bilinearly.

    The first frame counts, turned as its EXIF data say. 16 bits a channel become 8; floats are taken for 0..1, or, if
    one is above 1, for 0..255. What is transparent is seen on white.

    Args:
      source: the file's bytes, or its path.
      box: ``(width, height) -> part``.
      shape: ``(h, w, c)`` of what is wanted; one channel is grey, three are RGB.

    Raises:
      UnreadableError: if it is no image that can be read, with the reason.
    """
    try:
        with _opened(source) as opened:
            image = _of_bytes(_upright(opened), "L" if shape[-1] == 1 else "RGB")
        return fitted(image, box, shape)
    except Exception as error:  # decoders raise anything
        raise UnreadableError(_reason(error)) from error


def fitted(image: Any, box: Callable[[int, int], Box], shape: tuple[int, ...]) -> UInt8[np.ndarray, "h w c"]:
    """Part of an image of Pillow's, scaled bilinearly to a shape ``(h, w, c)``."""
    from PIL import Image

    height, width, _ = shape
    part = image.resize((width, height), Image.Resampling.BILINEAR, box(*image.size))
    return np.asarray(part, np.uint8).reshape(shape)


def look(source: bytes | str | os.PathLike[str]) -> tuple[tuple[int, int], bool]:
    """What an image's header says: ``((height, width), whether it is grey)``.

    Raises:
      UnreadableError: as :func:`read`.
    """
    try:
        with _opened(source) as image:
            width, height = image.size
            if _orientation(image) >= 5 and image.format != "TIFF":  # whose size is that of the upright image
                width, height = height, width
            return (height, width), image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    except Exception as error:
        raise UnreadableError(_reason(error)) from error


@functools.cache
def suffixes() -> frozenset[str]:
    """How the names of images end, in lower case."""
    from PIL import Image

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


@contextlib.contextmanager
def _opened(source: bytes | str | os.PathLike[str]) -> Iterator[Any]:
    from PIL import Image

    Image.init()
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data around the image that are damaged
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            yield image


def _upright(image: Any) -> Any:
    from PIL import Image

    image.load()
    turn = _TURNS.get(_orientation(image), "")
    return image.transpose(Image.Transpose[turn]) if turn else image


def _orientation(image: Any) -> int:
    """What EXIF says of it, 1 to 8; 1 where that is damaged."""
    try:
        said = image.getexif().get(_ORIENTATION)
        return said if said in _TURNS else 1
    except Exception:
        return 1


def _of_bytes(image: Any, mode: str) -> Any:
    """Eight bits a channel, opaque."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError("values below 0, or that are no numbers")
        unit = 65535 if image.mode != "F" else unit_of(values.max())
        if values.max() > unit:
            raise ValueError(f"values up to {values.max():g}, more than {unit}")
        image = Image.fromarray(np.round(np.minimum(values * (255 / unit), 255)).astype(np.uint8))
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert(mode)


def unit_of(most: float) -> float:
    """What floats up to ``most`` count as full: 1, or 255; a little above 1, as of a resampled image, is 1.

    Raises:
      ValueError: if it can be either.
    """
    if 1.01 < most < 2:
        raise ValueError(f"floats up to {most:g}, which may be parts of 1 or of 255: scale them to 0..1")
    return max(1.0, most) if most <= 1.01 else 255.0


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # whose message is an address
        return f"no image of the kinds {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Of what an error says; its type, if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def middle_box(shape: tuple[int, ...], width: int, height: int) -> Box:
    """The middle of an image of that size, as large as it can be with the sides of ``(h, w, c)``."""
    h, w, _ = shape
    if width * h < height * w:  # all of the width; which a product of a quotient might exceed
        part = width * h / w
        return 0, (height - part) / 2, width, (height + part) / 2
    part = height * w / h
    return (width - part) / 2, 0, (width + part) / 2, height


def centre_box(width: int, height: int) -> Box:
    """A centred square: 224 of the 256 pixels that the shorter side is scaled to, or in proportion."""
    side = min(width, height) * 224 / 256
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(width: int, height: int, rng: np.random.Generator, smallest: float = 0.08) -> Box:
    """Part of an image, of 8% to 100% of its area and an aspect ratio of 3/4 to 4/3 (uniform in its logarithm).

    The first of ten tries that lies within the image counts; failing all, the largest centred box of such a ratio.

    References:
      Szegedy et al. Going Deeper with Convolutions. CVPR 2015, section 6.
    """
    least, most = 3 / 4, 4 / 3
    for _ in range(10):
        area = rng.uniform(smallest, 1) * width * height
        ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * most)), min(height, round(width / least))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h
