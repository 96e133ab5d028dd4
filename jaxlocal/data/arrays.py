"""A user's own arrays of images, in a file."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxlocal.data.images import first_line, unit_of
from jaxlocal.data.own import TESTS, apart, check_classes, natural
from jaxlocal.data.prepared import MissingDataError
from jaxlocal.data.sources import Dataset, Split

_ARRAYS = {"image": ("image", "images", "x", "X", "data"), "label": ("label", "labels", "y", "target", "targets")}


def arrays(name: str, place: str | os.PathLike[str] | None = None, seed: int = 0) -> Dataset:
    """The arrays of ``arrays:FILE.npz``: ``x_train, y_train, x_test, y_test``, or one pair, as ``image, label``.

    Raises:
      ValueError: if arrays are missing, damaged, or cannot be images and their labels.
      MissingDataError: if there is no such file.
    """
    path = Path(place or name.split(":", 1)[1])
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise ValueError("it holds one array: save two by np.savez(FILE, image=..., label=...)")
        with opened:
            found = {key: opened[key] for key in opened.files}
    except FileNotFoundError as error:
        raise MissingDataError(f"data set {name}: there is no {path}") from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = first_line(error)
        if "pickle" in reason:  # of which NumPy says how it would be executed
            reason = "it is no archive of plain arrays, as np.savez(FILE, image=..., label=...) writes"
        raise ValueError(f"data set {name}: {path} cannot be read: {reason}") from error

    def pair(suffix: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Images and labels of a split, under the names that these may have."""
        keys = []
        for bases in _ARRAYS.values():
            names = [
                name for base in bases for name in ((f"{base}_{suffix}", f"{suffix}_{base}") if suffix else (base,))
            ]
            keys.append(next((name for name in names if name in found), None))
        image, label = keys
        if (image is None) != (label is None):
            other = "labels" if label is None else "images"
            raise ValueError(f"data set {name}: it has {image or label}, and no {other} to it among {', '.join(found)}")
        return None if image is None or label is None else (found[image], found[label])

    train = pair("train") or pair("")
    test = next((split for name in TESTS if (split := pair(name))), None)
    if train is None:
        raise ValueError(
            f"data set {name}: it has the arrays {', '.join(found) or 'none'}: give x_train, y_train, x_test and "
            "y_test, or image and label"
        )
    given = [train] if test is None else [train, test]
    for image, label in given:
        if not image.ndim or not label.ndim or len(image) != len(label):
            raise ValueError(f"data set {name}: images of shape {image.shape}, labels of shape {label.shape}")
    images = _as_bytes(name, *(image for image, _ in given))
    labels, classes = _numbered(name, *(label for _, label in given))
    splits = [Split(image, label) for image, label in zip(images, labels, strict=True)]
    check_classes(name, classes, labels[0])
    if test is None:
        (whole,) = splits
        chosen = apart(range(len(whole.label)), whole.label.tolist(), seed)
        splits = [Split(whole.image[part], whole.label[part]) for part in chosen]
    return Dataset(name, len(classes), splits[0], splits[1], classes)


def _as_bytes(name: str, *splits: np.ndarray) -> list[np.ndarray]:
    """Images ``[n, h, w]`` or ``[n, h, w, c]`` of any kind of number as bytes ``[n, h, w, c]``, all scaled alike.

    Raises:
      ValueError: if they are no such numbers.
    """
    for x in splits:
        if x.dtype.kind not in "buif" or x.ndim not in (3, 4) or not x.size:
            raise ValueError(
                f"data set {name}: images are {x.dtype} of shape {x.shape}: give numbers [n, h, w] or [n, h, w, c]"
            )
        if x.ndim == 4 and x.shape[-1] > 4 and x.shape[1] <= 4:
            raise ValueError(
                f"data set {name}: images are of shape {x.shape[1:]}: give channels last, by transpose(0, 2, 3, 1)"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"data set {name}: an image holds NaN or infinity")
    least, most = min(float(x.min()) for x in splits), max(float(x.max()) for x in splits)
    if len({x.dtype.kind == "f" for x in splits}) > 1:
        raise ValueError(
            f"data set {name}: images of the splits are {splits[0].dtype} and {splits[1].dtype}: give one kind"
        )
    if splits[0].dtype.kind == "f":
        scale = 255 / unit_of(most)
    elif splits[0].dtype == bool:
        scale = 255.0
    else:
        scale = 255 / 65535 if most > 255 and all(x.dtype == np.uint16 for x in splits) else 1.0
    if least < 0 or most * scale > 255.001:
        raise ValueError(
            f"data set {name}: images hold {least:g} to {most:g}: give bytes 0..255, floats 0..1, or 16 bits as uint16"
        )
    scaled = (x if scale == 1 and x.dtype == np.uint8 else np.round(x * scale).astype(np.uint8) for x in splits)
    images = [x if x.ndim == 4 else x[..., None] for x in scaled]
    if images[0].shape[-1] not in (1, 3):
        raise ValueError(f"data set {name}: images have {images[0].shape[-1]} channels: give one (grey) or three (RGB)")
    return images


def _numbered(name: str, *labels: np.ndarray) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Labels as numbers from 0, and the names of their classes.

    Raises:
      ValueError: if they are none.
    """
    flat = []
    for y in labels:
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1 or y.dtype.kind not in "iufUS":
            raise ValueError(
                f"data set {name}: labels are {y.dtype} of shape {y.shape}: give one number or name for each image (of "
                "one-hot rows, argmax(axis=1))"
            )
        flat.append(np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y)
    if any(y.dtype.kind == "U" for y in flat):
        classes = tuple(sorted({*map(str, flat[0])}, key=natural))
        number = {label: i for i, label in enumerate(classes)}
        if unknown := {str(label) for y in flat for label in y} - set(classes):
            raise ValueError(f"data set {name}: class {sorted(unknown)[0]!r} has no training image")
        return [np.array([number[str(label)] for label in y], np.int32) for y in flat], classes
    for y in flat:
        if y.size and (not np.isfinite(y).all() or (y != np.round(y)).any() or y.min() < 0 or y.max() >= 2**31):
            raise ValueError(f"data set {name}: labels {y.min()} to {y.max()}: give whole numbers from 0")
    count = 1 + int(max(y.max() for y in flat if y.size)) if any(y.size for y in flat) else 0
    seen = len(np.unique(flat[0]))
    if count > max(2 * seen, seen + 10):
        raise ValueError(f"data set {name}: labels go up to {count - 1}, and there are {seen} of them: count from 0")
    return [y.astype(np.int32) for y in flat], tuple(map(str, range(count)))
