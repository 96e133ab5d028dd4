"""Sets that TFDS has prepared, in the array_record format.

TensorFlow is never imported. TFDS reads array_record files without it; only *preparing* a set
(``python -m experiments.prepare``) needs it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jaxlocal.data.augment import STREAMED
from jaxlocal.data.images import centre_box
from jaxlocal.data.records import Listed, Records, sampled

TFDS_NAMES = ("cifar10", "cifar100", "fashion_mnist", "mnist", "stl10", "svhn_cropped")
NAMES = ("digits", *TFDS_NAMES)
SHAKESPEARE = "tinyshakespeare"
TEXTS = (SHAKESPEARE, "text:PATH", "bytes:PATH", "tokens:DIR")
OWN = ("images:DIR", "csv:FILE", "hf:DIR", "arrays:FILE.npz")
_OWN = "tensorflow_datasets."


class MissingDataError(FileNotFoundError):
    """A data set is not on this machine in a format that is read without TensorFlow."""


def is_text(name: str) -> bool:
    """Whether :class:`jaxlocal.data.Text` reads the set of that name."""
    return name == SHAKESPEARE or name.startswith(("text:", "bytes:", "tokens:", "random_text_"))


def unknown(name: str) -> ValueError:
    """What is said of a name that no set has: the nearest one."""
    import tensorflow_datasets as tfds

    all_names = tfds.list_builders(with_community_datasets=False)
    lower = name.lower()
    dated = [known for known in all_names if re.fullmatch(re.escape(lower) + r"\d+", known)]  # imagenet2012
    near = get_close_matches(lower, NAMES, n=1, cutoff=0.8) or dated or get_close_matches(lower, all_names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(
        f"unknown data set {name!r}: {hint}known are {', '.join((*NAMES, *OWN, *TEXTS))}, "
        "random_SIDE_CLASSES_EXAMPLES, rotated_DEGREES_NAME, and those of TFDS that have features image and label"
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
        raise unknown(name)
    for directory in list_data_dirs(given_data_dir=data_dir):  # all that TFDS would look in
        _check_classes(Path(os.path.expanduser(directory)) / re.split("[/:]", name)[0])
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise unknown(name) from error
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


def tfds_listed(name: str, data_dir: str | os.PathLike[str] | None = None) -> Listed:
    """Finds a set of encoded images; none of those that train is decoded. RGB, whatever they are.

    What is evaluated is the split ``test`` if it has labels, else ``validation``.

    Args:
      name: as TFDS has it.
      data_dir: TFDS directory; None for TFDS's own default.

    Raises:
      ValueError: if TFDS does not know the name, or the set is not of labelled images.
      MissingDataError: if it was not prepared.
      UnreadableError: if the first example of the split ``test`` is damaged.
    """
    import tensorflow_datasets as tfds

    builder = tfds_builder(name, data_dir)
    label = builder.info.features["label"]

    def records(split: str) -> Records:
        source = tfds_records(builder, split, decoders={"image": tfds.decode.SkipDecoding()})
        return Records(f"data set {name}, split {split}", source, label.num_classes)

    labelled = "test" in builder.info.splits and records("test").read(0, centre_box, 1)[1] >= 0
    train, test = records("train"), records("test" if labelled else "validation")
    for split in (train, test):
        if not len(split.source):
            raise ValueError(f"{split.name} is empty")
    return Listed(name, tuple(label.names), train, test, None, sampled(train.source, test.source), STREAMED)
