"""Where examples come from: scikit-learn's digits, and TFDS sets in the array_record format.

TensorFlow is never imported. TFDS reads array_record files without it; only
*preparing* a set (``python -m experiments.prepare``) needs it. A set is decoded
once and then read from one ``.npz`` file a split.
"""

import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

TFDS_NAMES = ("cifar10", "cifar100", "fashion_mnist", "mnist", "stl10", "svhn_cropped")
NAMES = ("digits", *TFDS_NAMES)


class MissingDataError(FileNotFoundError):
    """A data set is not on this machine in a format that is read without TensorFlow."""


class Split(NamedTuple):
    """All examples of a split.

    Attributes:
      image: ``[n, h, w, c]``, 0..255.
      label: ``[n]``.
    """

    image: UInt8[np.ndarray, "n h w c"]
    label: Int32[np.ndarray, "n"]


class Dataset(NamedTuple):
    """A data set in memory."""

    name: str
    num_classes: int
    train: Split
    test: Split


def default_cache_dir() -> Path:
    """``$JAXLOCAL_CACHE``, else ``~/.cache/jaxlocal``."""
    return Path(os.environ.get("JAXLOCAL_CACHE") or Path.home() / ".cache" / "jaxlocal")


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set.

    Args:
      name: one of :data:`NAMES`, or ``random_SIDE_CLASSES_EXAMPLES``: noise of that size.
      data_dir: TFDS directory; None for TFDS's own default (``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``). Not used by ``digits``.

    Raises:
      ValueError: if the name is not known.
      MissingDataError: if the set was never prepared in ``data_dir``.
    """
    if name == "digits":
        return _digits()
    if name in TFDS_NAMES:
        return _from_tfds(name, data_dir)
    if name.startswith("random_"):
        return _random(name)
    raise ValueError(f"unknown data set {name!r}: known are {', '.join(NAMES)}, random_SIDE_CLASSES_EXAMPLES")


def _random(name: str) -> Dataset:
    """Noise, to measure memory and speed at any size: ``random_224_1000_512``: 512 images of 224x224, 1000 classes."""
    match = re.fullmatch(r"random_([1-9]\d*)_([1-9]\d*)_([1-9]\d*)", name)
    if not match:
        raise ValueError(f"data set {name!r}: write random_SIDE_CLASSES_EXAMPLES, as random_224_1000_512")
    side, classes, examples = map(int, match.groups())
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        image = np.frombuffer(rng.bytes(n * side * side * 3), np.uint8).reshape(n, side, side, 3)
        return Split(image, rng.integers(0, classes, n, dtype=np.int32))

    return Dataset(name, classes, split(examples), split(128))


def _digits() -> Dataset:
    """1,797 digits of 8x8 pixels, 0..16 in the source; every fifth of a fixed shuffle is for testing."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    image = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    label = raw.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(label))
    test, train = order[::5], np.delete(order, np.s_[::5])
    return Dataset("digits", 10, Split(image[train], label[train]), Split(image[test], label[test]))


def _from_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except ValueError as error:  # prepared, in the format that needs TensorFlow
        raise MissingDataError(
            f"data set {name} is in {data_dir or 'the TFDS directory'}, but not as array_record: use another directory"
        ) from error
    splits = {split: _cached(builder, split) for split in ("train", "test")}
    return Dataset(name, builder.info.features["label"].num_classes, splits["train"], splits["test"])


def _cached(builder: Any, split: str) -> Split:
    """Reads a split from its cache file, or decodes it and writes the file."""
    try:
        source = builder.as_data_source(split)
    except (KeyError, NotImplementedError, OSError, ValueError) as error:
        raise MissingDataError(
            f"data set {builder.name} is not prepared in {Path(str(builder.data_dir)).parent.parent} as array_record"
        ) from error
    path = default_cache_dir() / "data" / f"{builder.name}-{builder.info.version}-{split}.npz"
    if (cached := _read(path)) and len(cached.label) == len(source):
        return cached
    decoded = _decode(source, f"decoding {builder.name} {split}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.savez(file, image=decoded.image, label=decoded.label)
    os.replace(file.name, path)
    return decoded


def _read(path: Path) -> Split | None:
    """A cache file's contents; None if it is missing or damaged (zip checks each array's CRC)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Split(arrays["image"], arrays["label"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _decode(source: Any, description: str) -> Split:
    from tqdm.auto import tqdm

    first = source[0]["image"]
    split = Split(np.empty((len(source), *first.shape), np.uint8), np.empty(len(source), np.int32))
    for i in tqdm(range(len(source)), desc=description, unit="img", delay=2, mininterval=1):
        example = source[i]
        split.image[i], split.label[i] = example["image"], example["label"]
    return split
