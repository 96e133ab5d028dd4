"""Sets whose images are read one by one, from wherever they lie."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlocal.data import images
from jaxlocal.data.augment import Recipe
from jaxlocal.data.images import Box, UnreadableError
from jaxlocal.data.progress import progress

SEEN = 256  # images that say what all of a set are like, at most


class Records(NamedTuple):
    """A split of a data set.

    Attributes:
      name: of both.
      source: by index, ``{"image": the file's bytes or its path, "label": its class}``; it has a length.
      classes: number of them.
      channels: of the images: one, or three.
    """

    name: str
    source: Any
    classes: int
    channels: int = 3

    def read(self, index: int, box: Callable[[int, int], Box], *side: int) -> tuple[np.ndarray, int]:
        """An example: the part of the image that ``box(width, height)`` says, scaled, and the label.

        Args:
          index: in the split.
          box: the part.
          side: of the square that is wanted; or height and width.

        Returns:
          ``[h, w, c]``, 0..255, whatever the image's mode; the label.

        Raises:
          UnreadableError: if the record or the image in it is damaged, or the label is of no class (-1: unknown).
        """
        where = f"example {index}"
        try:
            example = self.source[index]
            image = example["image"]
            if not isinstance(image, bytes):
                where = str(image)
            pixels = images.read(image, box, (side[0], side[-1], self.channels))
            label = int(example["label"])
            if not -1 <= label < self.classes:
                raise ValueError(f"label {label} of {self.classes} classes")
            return pixels, label
        except Exception as error:
            raise UnreadableError(f"{self.name}: {where} cannot be read: {images.first_line(error)}") from error


class Listed(NamedTuple):
    """A data set, found but not read.

    Attributes:
      name: of the set.
      classes: their names, in order.
      train: the training split.
      test: the one to evaluate.
      shape: ``(h, w)`` of the images, where all that were looked at have one; else None.
      fingerprint: of what it holds; two sets differ if theirs do.
      recipe: how its images are treated, if that is known.
    """

    name: str
    classes: tuple[str, ...]
    train: Records
    test: Records
    shape: tuple[int, int] | None
    fingerprint: str
    recipe: Recipe | None = None

    def sides(self, image_size: int) -> tuple[int, int]:
        """``(h, w)`` of the images as a network sees them: squares of a size, or what all have; 224 if they differ."""
        return (image_size, image_size) if image_size else self.shape or (224, 224)


def like_all(source: Any) -> tuple[tuple[int, int] | None, int]:
    """What some of a split's images say of all: ``((h, w) or None, channels)``.

    Raises:
      UnreadableError: if one cannot be read.
    """
    seen = set()
    for index in evenly(len(source), SEEN):
        image = source[index]["image"]
        try:
            seen.add(images.look(image))
        except UnreadableError as error:
            where = f"example {index}" if isinstance(image, bytes) else image
            raise UnreadableError(f"{where} cannot be read: {error}") from error
    shapes = {shape for shape, _ in seen}
    return shapes.pop() if len(shapes) == 1 else None, 1 if all(grey for _, grey in seen) else 3


def evenly(n: int, most: int) -> list[int]:
    """At most so many of the first ``n`` numbers, evenly apart."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)).tolist()


def content(example: Mapping[str, Any]) -> bytes:
    """What an example is told from others by: its file's bytes, and its label."""
    image = example["image"]
    encoded = image if isinstance(image, bytes) else Path(image).read_bytes()
    return encoded + int(example["label"]).to_bytes(4, "little", signed=True)


def sampled(*sources: Any) -> str:
    """A checksum of some examples of each split, and how many there are."""
    checksum = 0
    for source in sources:
        for index in evenly(len(source), SEEN // 4):
            checksum = zlib.crc32(content(source[index]), checksum)
    return " ".join((f"{checksum:08x}", *(str(len(source)) for source in sources)))


def in_order(records: Records, chosen: Sequence[int], box: Callable[[int, int], Box], *side: int) -> Any:
    """The examples of a split, decoded: ``(images [n, h, w, c], labels [n])``.

    Raises:
      UnreadableError: if one cannot be read, or has no label.
    """
    image = np.empty((len(chosen), side[0], side[-1], records.channels), np.uint8)
    label = np.empty(len(chosen), np.int32)
    for place, index in enumerate(progress(chosen, f"decoding {records.name}", "img", len(chosen))):
        image[place], label[place] = records.read(index, box, *side)
        if label[place] < 0:
            raise UnreadableError(f"{records.name}: example {index} has no label")
    return image, label
