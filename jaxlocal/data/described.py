"""A data set without its examples."""

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from jaxlocal.data.augment import Recipe, example_images, prepare_with
from jaxlocal.data.images import Box, centre_box, middle_box
from jaxlocal.data.inputs import InMemory, Input
from jaxlocal.data.stream import Streamed
from jaxlocal.data.text import Text, Tokenized
from jaxlocal.data.vocabulary import VOCABULARIES, Vocabulary
from jaxlocal.feed import Prepare
from jaxlocal.objective import Batch
from jaxlocal.task import Task


class Described:
    """What is known of a data set where it is not: enough to restore a run, and to read what it learned to read."""

    @staticmethod
    def of(dataset: Input) -> "Described | None":
        """The description of a data set; None of a kind that this cannot describe."""
        sizes = dataset.num_train, dataset.num_test
        if type(dataset) is Text:
            found = dataset.vocabulary, dataset.task.num_classes, dataset.context
            return DescribedText(*found, *sizes, dataset.fingerprint)
        if type(dataset) not in (InMemory, Streamed):  # others may prepare images otherwise
            return None
        shape, treatment = dataset.example(1).input.shape[1:], dataset.treatment  # type: ignore[attr-defined]
        whole = isinstance(dataset, InMemory) or not treatment.smallest
        names = dataset.classes, dataset.fingerprint
        return DescribedImages(dataset.task.num_classes, shape, treatment.mean, treatment.std, whole, *sizes, *names)

    @staticmethod
    def read(record: Any) -> "Described":
        """From JSON.

        Raises:
          ValueError: if something else is written there.
        """
        kind = DescribedText if isinstance(record, dict) and "unit" in record else DescribedImages
        return kind._read(record)

    @classmethod
    def _read(cls, record: Any) -> "Described":
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """For JSON: what :meth:`read` reads."""
        raise NotImplementedError

    def _missing(self, *given: Any) -> Any:
        """What needs examples.

        Raises:
          ValueError: always.
        """
        del given
        raise ValueError("the data set is not here, only its description: ask Trained.with_data() for it")

    resident = abstract = train = test = _missing


class DescribedText(Described, Tokenized):
    """A text. Its vocabulary is kept whole, so that a run alone can read and write.

    Args:
      vocabulary: what it is made of.
      num_classes: k.
      context: t.
      num_train: training examples.
      num_test: examples to evaluate.
      fingerprint: as :class:`jaxlocal.data.Input` has it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        num_classes: int,
        context: int,
        num_train: int,
        num_test: int,
        fingerprint: str = "",
    ) -> None:
        super().__init__(vocabulary, num_classes, context)
        self.num_train, self.num_test, self.fingerprint = num_train, num_test, fingerprint

    @classmethod
    def _read(cls, record: Any) -> "DescribedText":
        numbers = {name: record.get(name) for name in ("num_classes", "context", "num_train", "num_test")}
        if record.keys() - {"fingerprint"} != {"unit", "vocabulary", *numbers}:  # older runs have none
            raise ValueError(f"expected the fields unit, vocabulary, {', '.join(numbers)}")
        unit, content = record["unit"], record["vocabulary"]
        if not isinstance(content, str) or unit not in tuple(VOCABULARIES):
            raise ValueError(f"unit {unit!r}: expected {', '.join(VOCABULARIES)}, and a vocabulary that is text")
        vocabulary = VOCABULARIES[unit](content)
        if not all(type(x) is int and x > 0 for x in numbers.values()):
            raise ValueError(f"{numbers} holds sizes that are none")
        if unit != "token" and vocabulary.size != numbers["num_classes"]:
            raise ValueError(f"{vocabulary.size} {unit}s are not {numbers['num_classes']} classes")
        return cls(vocabulary, **numbers, fingerprint=str(record.get("fingerprint", "")))

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "unit": self.unit,
            "vocabulary": self.vocabulary.content,
            "num_classes": self.task.num_classes,
            "context": self.context,
            "num_train": self.num_train,
            "num_test": self.num_test,
            "fingerprint": self.fingerprint,
        }


@dataclasses.dataclass(frozen=True)
class DescribedImages(Described):
    """A set of images: enough to classify as a run learned to.

    Attributes:
      num_classes: k.
      shape: of an image, ``(h, w, c)``.
      mean: of each channel, in units of 1/255.
      std: likewise.
      in_memory: whether all of an image file is seen, as by :class:`InMemory`, or the centre, as by :class:`Streamed`.
      num_train: training examples.
      num_test: examples to evaluate.
      classes: as :class:`jaxlocal.data.Input` has them.
      fingerprint: likewise.
    """

    num_classes: int
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_memory: bool
    num_train: int
    num_test: int
    classes: tuple[str, ...] = ()
    fingerprint: str = ""

    batch_axes: ClassVar[Any] = 0
    ahead: ClassVar[int] = 0

    @classmethod
    def _read(cls, record: Any) -> "DescribedImages":
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        needed = {
            name for name, default in fields.items() if default is dataclasses.MISSING
        }  # older runs have no others
        if not isinstance(record, dict) or not needed <= record.keys() <= fields.keys():
            raise ValueError(f"expected the fields {', '.join(fields)}")
        given: Any = {name: tuple(x) if isinstance(x, list) else x for name, x in record.items()}
        found = cls(**given)
        counts = (found.num_classes, found.num_train, found.num_test, *_numbers(found.shape, 3))
        if not all(type(x) is int and x > 0 for x in counts) or type(found.in_memory) is not bool:
            raise ValueError(f"{record} holds sizes that are none")
        channels = found.shape[2]
        if not all(type(x) in (int, float) for x in (*_numbers(found.mean, channels), *_numbers(found.std, channels))):
            raise ValueError(f"{record} holds no mean and deviation of each channel")
        if type(found.fingerprint) is not str or type(found.classes) is not tuple:
            raise ValueError(f"{record} holds no fingerprint, or no classes")
        if not all(type(x) is str for x in found.classes) or len(found.classes) not in (0, found.num_classes):
            raise ValueError(f"{record} does not name {found.num_classes} classes")
        return found

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in dataclasses.asdict(self).items()}

    @property
    def task(self) -> Task:
        """One class an image."""
        return Task(self.num_classes)

    @property
    def prepare(self) -> Prepare:
        """Normalises."""
        return prepare_with(Recipe(self.mean, self.std))

    def example(self, n: int) -> Batch:
        """As it was recorded."""
        return example_images(n, self.shape)

    def box(self, width: int, height: int) -> Box:
        """As the data set's own."""
        return middle_box(self.shape, width, height) if self.in_memory else centre_box(width, height)

    def prototypes(self) -> np.ndarray:
        """Zeros, in place of which a checkpoint has the true ones."""
        return np.zeros((self.num_classes, math.prod(self.shape)), np.float32)


def _numbers(x: Any, n: int) -> tuple[Any, ...]:
    """So many, or nothing that is one."""
    return x if isinstance(x, tuple) and len(x) == n else (None,)
