"""Sets that are decoded once and kept in memory: scikit-learn's digits, small ones of TFDS, noise, a user's images.

What was decoded is read from one ``.npz`` file a split from then on.
"""

import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxlocal.data.augment import Recipe
from jaxlocal.data.images import Box, fitted, middle_box
from jaxlocal.data.prepared import NAMES, TFDS_NAMES, tfds_builder, tfds_records, unknown
from jaxlocal.data.progress import progress
from jaxlocal.data.records import Listed, Records, content, in_order


class Split(NamedTuple):
    """All examples of a split.

    Attributes:
      image: ``[n, h, w, c]``, 0..255.
      label: ``[n]``.
    """

    image: UInt8[np.ndarray, "n h w c"]
    label: Int32[np.ndarray, "n"]


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
      name: says how images are treated, where it is one of :data:`jaxlocal.data.RECIPES`.
      num_classes: k.
      train: the training split.
      test: the one to evaluate.
      classes: names of the classes, or none.
      recipe: how images are treated; None for what the name says.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    classes: tuple[str, ...] = ()
    recipe: Recipe | None = None


def default_cache_dir() -> Path:
    """``$JAXLOCAL_CACHE``, else ``~/.cache/jaxlocal``; where nobody is at home, one among temporary files."""
    if given := os.environ.get("JAXLOCAL_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "jaxlocal"
    except RuntimeError:
        return Path(tempfile.gettempdir(), f"jaxlocal-{os.getuid()}")


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set.

    Args:
      name: one of :data:`NAMES`; ``random_SIDE_CLASSES_EXAMPLES``: noise of that size; or ``rotated_DEGREES_NAME``:
        one of :data:`NAMES`, turned.
      data_dir: TFDS directory; None for TFDS's own default (``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``). Not used by ``digits``.

    Raises:
      ValueError: if the name is not known.
      MissingDataError: if the set was never prepared in ``data_dir``.
    """
    if name == "digits":
        return _digits()
    if _unversioned(name) in TFDS_NAMES:
        return _from_tfds(name, data_dir)
    if name.startswith("random_"):
        return _random(name)
    if name.startswith("rotated_"):
        return _rotated(name, data_dir)
    raise unknown(name)


def _random(name: str) -> Dataset:
    """Noise, to measure memory and speed at any size; ``random_224_1000_512``: 512 images of 224x224, 1000 classes.

    Images are windows of one row of bytes, each a byte after the one before: any number of them takes no memory here.
    """
    match = re.fullmatch(r"random_([1-9]\d*)_([1-9]\d*)_([1-9]\d*)", name)
    if not match:
        raise ValueError(f"data set {name!r}: write random_SIDE_CLASSES_EXAMPLES, as random_224_1000_512")
    side, classes, examples = map(int, match.groups())
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        length = side * side * 3
        row = np.frombuffer(rng.bytes(n - 1 + length), np.uint8)
        image = np.lib.stride_tricks.sliding_window_view(row, length).reshape(n, side, side, 3)
        return Split(image, rng.integers(0, classes, n, dtype=np.int32))

    return Dataset(name, classes, split(examples), split(128))


def _rotated(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Another domain of the same classes: ``rotated_45_mnist``, every image turned anticlockwise about its centre."""
    from scipy import ndimage

    match = re.fullmatch(r"rotated_(\d+)_(\w+)", name)
    if not match or match[2] not in NAMES:
        raise ValueError(f"data set {name!r}: write rotated_DEGREES_NAME, as rotated_45_mnist, of {', '.join(NAMES)}")
    degrees, dataset = int(match[1]), load(match[2], data_dir)

    def turned(split: Split) -> Split:
        return split._replace(image=ndimage.rotate(split.image, degrees, axes=(2, 1), reshape=False, order=1))

    return dataset._replace(train=turned(dataset.train), test=turned(dataset.test))


def _digits() -> Dataset:
    """1,797 digits of 8x8 pixels, 0..16 in the source; every fifth of a fixed shuffle is for testing."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    image = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    label = raw.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(label))
    test, train = order[::5], np.delete(order, np.s_[::5])
    splits = Split(image[train], label[train]), Split(image[test], label[test])
    return Dataset("digits", 10, *splits, tuple(map(str, range(10))))


def is_small(name: str) -> bool:
    """Whether :func:`load` takes the name."""
    return _unversioned(name) in NAMES or name.startswith(("random_", "rotated_"))


def _unversioned(name: str) -> str:
    """``mnist:3.0.1`` is ``mnist``."""
    return re.sub(r":\d[\w.]*$", "", name)


def _from_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    builder = tfds_builder(name, data_dir)
    splits = {split: _cached(builder, split) for split in ("train", "test")}
    label = builder.info.features["label"]
    return Dataset(name, label.num_classes, splits["train"], splits["test"], tuple(label.names))


def _cached(builder: Any, split: str) -> Split:
    """Reads a split from its cache file, or decodes it and writes the file."""
    source = tfds_records(builder, split)
    name = f"{builder.name}-{builder.info.version}-{split}-{_checksum(builder, split):08x}.npz"
    return _kept(name, len(source), lambda: _decode(source, f"decoding {builder.name} {split}"))


def _kept(name: str, n: int, decode: Callable[[], Split]) -> Split:
    """What a cache file holds; decoded and written first, if there is none. Without a place to write, it is decoded."""
    path = default_cache_dir() / "data" / name
    if (cached := _read(path)) and len(cached.label) == n:
        return cached
    decoded = decode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made = Path(directory, path.name)
            np.savez(made, image=decoded.image, label=decoded.label)
            os.replace(made, path)
    except OSError:
        pass
    return decoded


def in_memory(listed: Listed, image_size: int = 0) -> Dataset:
    """Decodes a set: of each image the middle, as large as it can be.

    Args:
      listed: the set.
      image_size: side of the images; 0 for what all have, 224 where they differ.

    Raises:
      UnreadableError: if an image cannot be read, or has no label.
    """
    sides = listed.sides(image_size)

    def split(records: Records) -> Split:
        def box(width: int, height: int) -> Box:
            return middle_box((*sides, records.channels), width, height)

        height, width = sides
        name = f"own-{_content(records):08x}-{height}x{width}x{records.channels}.npz"
        n = len(records.source)
        return _kept(name, n, lambda: Split(*in_order(records, range(n), box, *sides)))

    splits = split(listed.train), split(listed.test)
    return Dataset(listed.name, len(listed.classes), *splits, listed.classes, listed.recipe)


def _content(records: Records) -> int:
    """Checksum of all images and labels."""
    checksum = 0
    for index in range(len(records.source)):
        checksum = zlib.crc32(content(records.source[index]), checksum)
    return checksum


def resized(dataset: Dataset, image_size: int) -> Dataset:
    """The same images, scaled to squares of a size: of each the middle, as large as it can be."""
    sides = (image_size, image_size, 1)
    if dataset.train.image.shape[1:3] == sides[:2]:
        return dataset

    from PIL import Image

    def box(width: int, height: int) -> Box:
        return middle_box(sides, width, height)

    def scaled(image: np.ndarray) -> np.ndarray:
        pixels = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        return fitted(pixels, box, (image_size, image_size, image.shape[-1]))

    train, test = (
        split._replace(image=np.stack([scaled(image) for image in split.image]))
        for split in (dataset.train, dataset.test)
    )
    return dataset._replace(train=train, test=test)


def _checksum(builder: Any, split: str) -> int:
    """Of a split's files: sets of one name in two directories may be two."""
    checksum = 0
    paths = getattr(builder.info.splits.get(split), "filepaths", ())  # TFDS's mock sets have none
    for path in map(Path, sorted(map(str, paths))):
        with path.open("rb") as file:
            while part := file.read(2**24):
                checksum = zlib.crc32(part, checksum)
    return checksum


def _read(path: Path) -> Split | None:
    """A cache file's contents; None if it is missing or damaged (zip checks each array's CRC)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Split(arrays["image"], arrays["label"])
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def _decode(source: Any, description: str) -> Split:
    first = source[0]["image"]
    split = Split(np.empty((len(source), *first.shape), np.uint8), np.empty(len(source), np.int32))
    for i in progress(range(len(source)), description, "img", len(source)):
        example = source[i]
        split.image[i], split.label[i] = example["image"], example["label"]
    return split
