"""A data set without its examples."""

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from jaxlocal.data.augment import Recipe, example_images, prepare_with
from jaxlocal.data.inputs import Box, InMemory, Input, middle_box
from jaxlocal.data.stream import Streamed, centre_box
from jaxlocal.feed import Prepare
from jaxlocal.objective import Batch
from jaxlocal.task import Task


@dataclasses.dataclass(frozen=True)
class Described:
    """What is known of a set of images where it is not: enough to restore a run, and to classify as it learned to.

    Attributes:
      num_classes: k.
      shape: of an image, ``(h, w, c)``.
      mean: of each channel, in units of 1/255.
      std: likewise.
      in_memory: whether all of an image file is seen, as by :class:`InMemory`, or a crop, as by :class:`Streamed`.
      num_train: training examples.
      num_test: examples to evaluate.
    """

    num_classes: int
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_memory: bool
    num_train: int
    num_test: int

    batch_axes: ClassVar[Any] = 0
    ahead: ClassVar[int] = 0

    @classmethod
    def of(cls, dataset: Input) -> "Described | None":
        """The description of a data set; None of a kind that this cannot describe."""
        if type(dataset) not in (InMemory, Streamed):  # others may prepare images otherwise
            return None
        shape, treatment = dataset.example(1).input.shape[1:], dataset.treatment  # type: ignore[attr-defined]
        sizes = dataset.num_train, dataset.num_test
        in_memory = isinstance(dataset, InMemory)
        return cls(dataset.task.num_classes, shape, treatment.mean, treatment.std, in_memory, *sizes)

    @classmethod
    def read(cls, record: Any) -> "Described":
        """From JSON.

        Raises:
          ValueError: if something else is written there.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(record, dict) or record.keys() != set(fields):
            raise ValueError(f"expected the fields {', '.join(fields)}")
        given: Any = {name: tuple(x) if isinstance(x, list) else x for name, x in record.items()}
        found = cls(**given)
        counts = (found.num_classes, found.num_train, found.num_test, *_numbers(found.shape, 3))
        if not all(type(x) is int and x > 0 for x in counts) or type(found.in_memory) is not bool:
            raise ValueError(f"{record} holds sizes that are none")
        channels = found.shape[2]
        if not all(type(x) in (int, float) for x in (*_numbers(found.mean, channels), *_numbers(found.std, channels))):
            raise ValueError(f"{record} holds no mean and deviation of each channel")
        return found

    def record(self) -> dict[str, Any]:
        """For JSON: what :meth:`read` reads."""
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

    def _missing(self, *given: Any) -> Any:
        """What needs examples.

        Raises:
          ValueError: always.
        """
        del given
        raise ValueError("the data set is not here, only its description: ask Trained.with_data() for it")

    resident = abstract = train = test = _missing


def _numbers(x: Any, n: int) -> tuple[Any, ...]:
    """So many, or nothing that is one."""
    return x if isinstance(x, tuple) and len(x) == n else (None,)
