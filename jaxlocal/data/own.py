"""A user's own image files: a directory by class, a table of paths and labels, a Hugging Face data set.

What has no test split gives every fifth example of each class for one, drawn by a seed.
"""

import csv
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlocal.data import images
from jaxlocal.data.prepared import OWN, MissingDataError
from jaxlocal.data.records import Listed, Records, like_all, sampled

TRAINS = ("train", "training")
TESTS = ("test", "val", "validation", "valid")


class Example(NamedTuple):
    """Where an image is, and the name of its class."""

    path: str
    label: str


class Files:
    """Image files and the numbers of their classes, by index."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray) -> None:
        self.paths, self.labels = list(paths), labels

    def __len__(self) -> int:
        """How many there are."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As :class:`jaxlocal.data.records.Records` takes it."""
        return {"image": self.paths[index], "label": self.labels[index]}


class Rows(NamedTuple):
    """Rows of a Hugging Face data set, and which of its columns are the image and its class."""

    rows: Any
    image: str
    label: str

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """As :class:`jaxlocal.data.records.Records` takes it."""
        row = self.rows[int(index)]
        image = row[self.image]
        if image is None:
            raise images.UnreadableError("it has no image")
        return {"image": image["bytes"] or image["path"], "label": row[self.label]}


def is_own(name: str) -> bool:
    """Whether the name is of a user's own data: arrays, or what :func:`listed` finds."""
    return name.startswith(tuple(f"{form.partition(':')[0]}:" for form in OWN))


def listed(name: str, place: str | os.PathLike[str] | None = None, seed: int = 0) -> Listed:
    """Finds the images of a set that a user names; none is decoded.

    Args:
      name: ``images:DIR``, with a directory for each class in ``DIR/train`` and ``DIR/test`` (or ``val``), or in DIR;
        ``csv:FILE``, a table with the columns ``path`` (from the file's directory), ``label`` and perhaps ``split``
        (``train`` or ``test``); or ``hf:DIR``, what Hugging Face's ``save_to_disk`` wrote, or parquet files.
      place: where it is now, if not where the name says.
      seed: of the split, where the set has none.

    Raises:
      ValueError: if it is no such thing, or holds what cannot be trained on.
      MissingDataError: if there is nothing.
    """
    kind, path = name.split(":", 1)
    found = Path(place or path)
    if not (place or path):
        raise ValueError(f"data set {name!r}: write {', '.join(OWN)}")
    if not found.exists():
        raise MissingDataError(f"data set {name}: there is no {found}")
    if kind == "hf":
        return _hugging_face(name, found, seed)
    splits = _folders(name, found) if kind == "images" else _table(name, found)
    train, test = splits["train"], next((splits[split] for split in TESTS if split in splits), None)
    classes = tuple(sorted({example.label for example in train}, key=natural))
    number = {label: i for i, label in enumerate(classes)}
    if unknown := next((example for example in test or () if example.label not in number), None):
        raise ValueError(f"data set {name}: {unknown.path} is of class {unknown.label!r}, which has no training image")
    check_classes(name, classes, [number[example.label] for example in train])
    if test is None:
        train, test = apart(train, [example.label for example in train], seed)

    def files(examples: Sequence[Example]) -> Files:
        return Files([e.path for e in examples], np.array([number[e.label] for e in examples], np.int32))

    sizes = "".join(f"{Path(e.path).name} {os.path.getsize(e.path)} {number[e.label]}\n" for e in (*train, *test))
    return _made(name, classes, files(train), files(test), f"{zlib.crc32(os.fsencode(sizes)):08x}")


def _made(name: str, classes: tuple[str, ...], train: Any, test: Any, fingerprint: str) -> Listed:
    for split, source in (("train", train), ("test", test)):
        if not len(source):
            raise ValueError(f"data set {name}, split {split}, is empty")
    try:
        shape, channels = like_all(train)
    except images.UnreadableError as error:
        raise ValueError(f"data set {name}: {error}") from error
    kept, tests = (
        Records(f"data set {name}, split {split}", source, len(classes), channels)
        for split, source in (("train", train), ("test", test))
    )
    return Listed(name, classes, kept, tests, shape, fingerprint)


def apart(examples: Sequence[Any], labels: Sequence[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Every fifth example of each class, drawn by a seed, is one to test; of a class of fewer than five, one.

    Raises:
      ValueError: if a class has one example alone.
    """
    rng, tests = np.random.default_rng(seed), set()
    places: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    for label, of_class in places.items():
        if len(of_class) < 2:
            raise ValueError(f"class {label} has one example, and no test split is given: two are needed at least")
        tests.update(rng.permutation(of_class)[: max(1, len(of_class) // 5)].tolist())
    train = [x for place, x in enumerate(examples) if place not in tests]
    return train, [examples[place] for place in sorted(tests)]


def check_classes(name: str, classes: Sequence[str], labels: Sequence[int] | np.ndarray) -> None:
    """Raises ValueError if there are not two classes, one's name is not UTF-8, or one has no training image."""
    if strange := [label for label in classes if not is_text(label)]:
        raise ValueError(f"data set {name}: the name of class {strange[0]!r} is not UTF-8: rename it")
    if len(classes) < 2:
        raise ValueError(f"data set {name}: images of one class ({', '.join(classes)}): two are needed at least")
    if missing := sorted(set(range(len(classes))) - set(np.unique(labels).tolist())):
        raise ValueError(
            f"data set {name}: class {classes[missing[0]]!r} has no training image: count from 0, and leave none out"
        )


def is_text(name: str) -> bool:
    """Whether it can be written in UTF-8: names of files may have bytes that are no text."""
    return not re.search(r"[\ud800-\udfff]", name)


def natural(label: str) -> tuple[Any, ...]:
    """Numbers by their value, where a class is one."""
    return (0, int(label), label) if re.fullmatch(r"\d{1,18}", label) else (1, 0, label)


def _folders(name: str, root: Path) -> dict[str, list[Example]]:
    if not root.is_dir():
        raise ValueError(f"data set {name}: {root} is no directory: give one that has a directory for each class")
    splits = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    train, test = (next((splits[split] for split in of if split in splits), None) for of in (TRAINS, TESTS))
    if train is None and test is None:
        return {"train": _classes(name, root)}
    if train is None or test is None:
        missing = " or ".join(TESTS if test is None else TRAINS)
        raise ValueError(f"data set {name}: {root} has {(train or test).name}, and no {missing} beside it")  # type: ignore[union-attr]
    return {"train": _classes(name, train), "test": _classes(name, test)}


def _classes(name: str, root: Path) -> list[Example]:
    found: list[Example] = []
    left: list[Path] = []
    for directory in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        before = len(found)
        for path in sorted(_files(directory)):
            if path.suffix.lower() not in images.suffixes():
                left.append(path)
            elif not path.is_file():
                raise ValueError(f"data set {name}: {path} is no file, or a link to one that is not there")
            else:
                found.append(Example(str(path), directory.name))
        if len(found) == before:
            raise ValueError(f"data set {name}: {directory} holds no image")
    if not found:
        raise ValueError(f"data set {name}: {root} has no directory of images for each class")
    if left:
        warnings.warn(
            f"data set {name}: {len(left)} files are no images by their names, and left out, as {left[0]}", stacklevel=2
        )
    return found


def _files(root: Path) -> Iterator[Path]:
    """All below a directory, behind links too, but for hidden ones."""
    for directory, _, names in os.walk(root, followlinks=True):
        yield from (Path(directory, file) for file in names if not file.startswith("."))


def _table(name: str, file: Path) -> dict[str, list[Example]]:
    splits: dict[str, list[Example]] = {}
    lines: dict[str, int] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.DictReader(opened)
            columns = [column.strip() for column in rows.fieldnames or ()]
            if not {"path", "label"} <= set(columns):
                shown = ", ".join(columns) or "nothing"
                raise ValueError(f"data set {name}: the first line has to name the columns path and label, not {shown}")
            rows.fieldnames = columns
            for row in rows:
                given = {key: (row[key] or "").strip() for key in ("path", "label", "split") if key in columns}
                if not given["path"] or not given["label"]:
                    raise ValueError(f"data set {name}, line {rows.line_num}: no path, or no label")
                split = given.get("split", "train").lower()
                if split not in (*TRAINS, *TESTS):
                    raise ValueError(f"data set {name}, line {rows.line_num}: split {split!r}: write train or test")
                path = file.parent / os.path.expanduser(given["path"])
                if not path.is_file():
                    raise ValueError(f"data set {name}, line {rows.line_num}: there is no file {path}")
                if (first := lines.setdefault(str(path), rows.line_num)) != rows.line_num:
                    raise ValueError(f"data set {name}, line {rows.line_num}: {path} is in line {first} already")
                splits.setdefault("train" if split in TRAINS else split, []).append(Example(str(path), given["label"]))
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise ValueError(f"data set {name}: {file} is no table in UTF-8: {error}") from error
    if "train" not in splits:
        raise ValueError(f"data set {name}: {file} names no image to train on")
    return splits


def _hugging_face(name: str, root: Path, seed: int) -> Listed:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"data set {name}: it is read by Hugging Face's datasets: pip install 'jaxlocal[hf]'"
        ) from error

    datasets.disable_progress_bars()
    parquet = any(root.rglob("*.parquet"))
    try:
        found = datasets.load_dataset(str(root)) if parquet else datasets.load_from_disk(str(root))
    except Exception as error:
        raise ValueError(f"data set {name}: datasets cannot read it: {images.first_line(error)}") from error
    splits: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    if "train" not in splits:
        raise ValueError(f"data set {name}: it has the splits {', '.join(splits)}, and none of them is train")
    features = splits["train"].features
    image = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    label = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(image) != 1 or len(label) != 1:
        kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
        raise ValueError(f"data set {name}: one column of Image and one of ClassLabel are needed, not {kinds}")

    def plain(split: str) -> Any:
        """Images stay encoded."""
        return splits[split].select_columns([*image, *label]).cast_column(image[0], datasets.Image(decode=False))

    def labelled(split: str) -> bool:
        return -1 not in splits[split][label[0]]

    names = tuple(map(str, features[label[0]].names))
    for split, rows in splits.items():
        if label[0] not in rows.features or tuple(map(str, rows.features[label[0]].names)) != names:
            raise ValueError(f"data set {name}: the classes of the splits train and {split} are not the same")
        if None in rows[label[0]]:
            raise ValueError(f"data set {name}, split {split}: a row has no {label[0]}")
    train = plain("train")
    test = next((plain(split) for split in TESTS if split in splits and labelled(split)), None)
    check_classes(name, names, train[label[0]])
    if test is None:
        train, test = (train.select(part) for part in apart(range(len(train)), list(train[label[0]]), seed))
    kept, tests = (Rows(rows, image[0], label[0]) for rows in (train, test))
    return _made(name, names, kept, tests, sampled(kept, tests))
