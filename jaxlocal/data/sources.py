"""Where examples come from: scikit-learn's digits, and TFDS sets in the array_record format.

TensorFlow is never imported. TFDS reads array_record files without it; only
*preparing* a set (``python -m experiments.prepare``) needs it. A small set (:data:`NAMES`) is decoded
once and then read from one ``.npz`` file a split; for others, see :mod:`jaxlocal.data.stream`.
"""

import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

TFDS_NAMES = ("cifar10", "cifar100", "fashion_mnist", "mnist", "stl10", "svhn_cropped")
NAMES = ("digits", *TFDS_NAMES)
SHAKESPEARE = "tinyshakespeare"
TEXTS = (SHAKESPEARE, "text:PATH", "bytes:PATH", "tokens:DIR")
_OWN = "tensorflow_datasets."


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
    if name in TFDS_NAMES:
        return _from_tfds(name, data_dir)
    if name.startswith("random_"):
        return _random(name)
    if name.startswith("rotated_"):
        return _rotated(name, data_dir)
    raise _unknown(name)


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
    return Dataset("digits", 10, Split(image[train], label[train]), Split(image[test], label[test]))


def is_small(name: str) -> bool:
    """Whether :func:`load` takes the name."""
    return name in NAMES or name.startswith(("random_", "rotated_"))


def is_text(name: str) -> bool:
    """Whether :class:`jaxlocal.data.Text` reads the set of that name."""
    return name == SHAKESPEARE or name.startswith(("text:", "bytes:", "tokens:", "random_text_"))


def _unknown(name: str) -> ValueError:
    """What is said of a name that nothing has: the nearest one."""
    import tensorflow_datasets as tfds

    all_names = tfds.list_builders(with_community_datasets=False)
    lower = name.lower()
    dated = [known for known in all_names if re.fullmatch(re.escape(lower) + r"\d+", known)]  # imagenet2012
    near = get_close_matches(lower, NAMES, n=1, cutoff=0.8) or dated or get_close_matches(lower, all_names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(
        f"unknown data set {name!r}: {hint}known are {', '.join((*NAMES, *TEXTS))}, random_SIDE_CLASSES_EXAMPLES, "
        "rotated_DEGREES_NAME, and those of TFDS that have features image and label"
    )


def tfds_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """TFDS's builder of an image classification set; it need not be prepared.

    Args:
      name: ``NAME``, ``NAME/CONFIG`` or ``NAME:VERSION``, as TFDS has them.
      data_dir: TFDS directory; None for TFDS's own default.

    Raises:
      ValueError: if TFDS does not know the name, the set has other features than an image and its class, or its
        files name code that is not TFDS's.
      MissingDataError: if the set is there in a format that needs TensorFlow.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils.file_utils import list_data_dirs

    if not re.fullmatch(r"\w+(/[\w.-]+)?(:\d[\w.]*)?", name):
        raise _unknown(name)
    for directory in list_data_dirs(given_data_dir=data_dir):  # all that TFDS would look in
        _check_classes(Path(directory).expanduser() / re.split("[/:]", name)[0])
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name) from error
    except ImportError as error:
        raise ValueError(f"data set {name!r}: TFDS cannot describe it without {error.name or 'TensorFlow'}") from error
    except ValueError as error:
        if "BuilderConfig" in str(error):
            base = name.split("/")[0]
            known = ", ".join(tfds.builder_cls(base).builder_configs)
            raise ValueError(f"data set {name!r}: of {base}, TFDS knows {known}") from error
        raise MissingDataError(  # prepared, in the format that needs TensorFlow
            f"data set {name} is in {data_dir or 'the TFDS directory'}, but not as array_record: use another directory"
        ) from error
    features: Any = builder.info.features
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kind) for key, kind in kinds.items()):
        raise ValueError(f"data set {name!r} has the features {', '.join(features)}: an image and its label are needed")
    return builder


def _check_classes(directory: Path) -> None:
    """TFDS imports the classes that a prepared set's files name: these may be its own alone.

    Raises:
      ValueError: if there is another one, or a file cannot be read.
    """

    def named(tree: Any) -> Iterator[str]:
        if isinstance(tree, Mapping):
            for key, value in tree.items():
                if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                    yield value
                yield from named(value)
        elif isinstance(tree, list):
            for value in tree:
                yield from named(value)

    for path in directory.rglob("features.json"):
        try:
            foreign = [name for name in named(json.loads(path.read_bytes())) if not name.startswith(_OWN)]
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if foreign:
            raise ValueError(f"{path} names the class {foreign[0]!r}: only those of tensorflow_datasets are imported")


def tfds_records(builder: Any, split: str, **options: Any) -> Any:
    """A split of a :func:`tfds_builder`, read by index; options are those of TFDS's ``as_data_source``.

    Raises:
      ValueError: if the set has no such split.
      MissingDataError: if the set was not prepared.
    """
    if builder.info.splits and split not in builder.info.splits:
        raise ValueError(f"data set {builder.name} has no split {split}: it has {', '.join(builder.info.splits)}")
    try:
        return builder.as_data_source(split, **options)
    except (KeyError, NotImplementedError, OSError, ValueError) as error:
        directory = Path(str(builder.data_dir)).parents[2 if builder.builder_config else 1]
        raise MissingDataError(f"data set {builder.name} is not prepared in {directory} as array_record") from error


def _from_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    builder = tfds_builder(name, data_dir)
    splits = {split: _cached(builder, split) for split in ("train", "test")}
    return Dataset(name, builder.info.features["label"].num_classes, splits["train"], splits["test"])


def _cached(builder: Any, split: str) -> Split:
    """Reads a split from its cache file, or decodes it and writes the file."""
    source = tfds_records(builder, split)
    name = f"{builder.name}-{builder.info.version}-{split}-{_checksum(builder, split):08x}.npz"
    path = default_cache_dir() / "data" / name
    if (cached := _read(path)) and len(cached.label) == len(source):
        return cached
    decoded = _decode(source, f"decoding {builder.name} {split}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory, path.name)
        np.savez(made, image=decoded.image, label=decoded.label)
        os.replace(made, path)
    return decoded


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
    from tqdm.auto import tqdm

    first = source[0]["image"]
    split = Split(np.empty((len(source), *first.shape), np.uint8), np.empty(len(source), np.int32))
    for i in tqdm(range(len(source)), desc=description, unit="img", delay=2, mininterval=1):
        example = source[i]
        split.image[i], split.label[i] = example["image"], example["label"]
    return split
