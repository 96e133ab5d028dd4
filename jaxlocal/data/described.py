"""A data set without its examples."""

import math
from typing import Any

import numpy as np

from jaxlocal.data.augment import STREAMED, example_images, prepare_with, recipe
from jaxlocal.data.inputs import Box, middle_box
from jaxlocal.data.sources import is_small
from jaxlocal.data.stream import centre_box
from jaxlocal.objective import Batch
from jaxlocal.task import Task


class Described:
    """What is known of a data set where it is not: enough to restore a run, and to classify images as it learned to.

    Args:
      name: as a config has it.
      num_classes: k.
      shape: of an image, ``(h, w, c)``.
      num_train: training examples.
      num_test: examples to evaluate.
    """

    batch_axes = 0
    ahead = 0

    def __init__(self, name: str, num_classes: int, shape: tuple[int, ...], num_train: int, num_test: int) -> None:
        self.task = Task(num_classes)
        self.num_train, self.num_test = num_train, num_test
        self.prepare = prepare_with(recipe(name) if is_small(name) else STREAMED)
        self._name, self._shape = name, shape

    def example(self, n: int) -> Batch:
        """As it was recorded."""
        return example_images(n, self._shape)

    def box(self, width: int, height: int) -> Box:
        """As the data set's own."""
        return middle_box(self._shape, width, height) if is_small(self._name) else centre_box(width, height)

    def prototypes(self) -> np.ndarray:
        """Zeros, in place of which a checkpoint has the true ones."""
        return np.zeros((self.task.num_classes, math.prod(self._shape)), np.float32)

    def _missing(self, *given: Any) -> Any:
        """What needs examples.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"data set {self._name} was not loaded: only its description is here")

    resident = abstract = train = test = _missing
