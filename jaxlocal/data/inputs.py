"""Where the data of steps come from: a data set in memory, or one that is read as it goes."""

from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlocal.data.augment import Examples, example_images, prepare_with, recipe
from jaxlocal.data.order import Order
from jaxlocal.data.prototypes import prototypes
from jaxlocal.data.sources import Dataset
from jaxlocal.feed import Prepare
from jaxlocal.objective import Batch
from jaxlocal.task import Task
from jaxlocal.variables import abstract

Box = tuple[int | float, int | float, int | float, int | float]  # left, upper, right, lower


@runtime_checkable
class Devices(Protocol):
    """What an input asks of a :class:`jaxlocal.executors.Placement`, which says more of each."""

    @property
    def devices(self) -> tuple[jax.Device, ...]: ...

    def replicate(self, tree: Any) -> Any: ...

    def positions(self, n: int) -> np.ndarray: ...

    def spread(self, data: Any, axes: Any) -> Any: ...


@runtime_checkable
class Input(Protocol):
    """A data set, and how its examples come to the devices.

    What a step takes follows from the seed and the step's number alone.

    Attributes:
      task: what it asks of a network.
      num_train: training examples.
      num_test: examples to evaluate.
      prepare: makes a batch of a step's data, inside the step.
      batch_axes: which of a step's data belong to single examples, as executors take it.
      ahead: steps whose data may be on the devices before they begin.
    """

    task: Task
    num_train: int
    num_test: int
    prepare: Prepare
    batch_axes: Any
    ahead: int

    def example(self, n: int) -> Batch:
        """What ``n`` examples look like to a network: shapes and dtypes, no values."""
        ...

    def box(self, width: int, height: int) -> Box:
        """The part of an image file of that size that is scaled to the shape of the images, to evaluate it."""

    def prototypes(self) -> np.ndarray:
        """An image of each class, ``[k, h w c]``, normalised.

        Raises:
          ValueError: if they cannot be found.
        """

    def resident(self, devices: Devices) -> Any:
        """What all training steps share, put on the devices."""

    def abstract(self, shape: tuple[int, ...]) -> Any:
        """Shapes and dtypes of a step's data, whose examples have these leading axes."""

    def train(
        self, devices: Devices, resident: Any, steps: range, batch_size: int, seeds: Sequence[int]
    ) -> Generator[Any, None, None]:
        """The data of each of the steps, on the devices.

        Args:
          devices: to put them on.
          resident: what :meth:`resident` gave.
          steps: consecutive.
          batch_size: examples in a step.
          seeds: one, or several that are trained together: their data then have a leading axis.
        """

    def test(self, devices: Devices, batch_size: int) -> Generator[tuple[int, Any], None, None]:
        """Every example to evaluate once, in order: how many there are, and their data on the devices."""


def middle_box(shape: tuple[int, ...], width: int, height: int) -> Box:
    """The middle of an image of that size, as large as it can be with the sides of ``(h, w, c)``."""
    h, w, _ = shape
    scale = min(width / w, height / h)
    left, upper = (width - scale * w) / 2, (height - scale * h) / 2
    return left, upper, left + scale * w, upper + scale * h


def _check(dataset: Dataset) -> None:
    for name, (image, label) in (("train", dataset.train), ("test", dataset.test)):
        where = f"data set {dataset.name}, split {name}"
        if not len(label) or 0 in image.shape:
            raise ValueError(f"{where} is empty: labels {label.shape}, images {image.shape}")
        if image.dtype != np.uint8 or image.ndim != 4 or len(image) != len(label):
            raise ValueError(
                f"{where} has images {image.shape} of {image.dtype} and {len(label)} labels: for each label, give an "
                "image [h, w, c] of uint8"
            )
        if label.min() < 0 or label.max() >= dataset.num_classes:
            raise ValueError(
                f"{where} has labels {label.min()} to {label.max()}: {dataset.num_classes} classes count from 0"
            )
    if dataset.train.image.shape[1:] != dataset.test.image.shape[1:]:
        shapes = " and ".join(str(split.image.shape[1:]) for split in (dataset.train, dataset.test))
        raise ValueError(f"data set {dataset.name} has images of {shapes} in its splits: give both one shape")


class InMemory:
    """A decoded data set: the training split stays on the devices, and a step's data say which examples to take.

    Args:
      dataset: of :func:`jaxlocal.data.load`, or noise.
      augment: whether training images are cropped and mirrored, where the recipe says so.

    Raises:
      ValueError: if a split is empty, its images are not bytes (so none is NaN), or a label is of no class.
    """

    batch_axes = Examples(None, None, 0)  # type: ignore[arg-type]
    ahead = 0

    def __init__(self, dataset: Dataset, *, augment: bool = True) -> None:
        _check(dataset)
        self.task = Task(dataset.num_classes)
        self.num_train, self.num_test = len(dataset.train.label), len(dataset.test.label)
        self.treatment = recipe(dataset.name)
        self.prepare = prepare_with(self.treatment if augment else self.treatment._replace(pad=0, flip=False))
        self._dataset, self._train, self._test = dataset, dataset.train, dataset.test

    def example(self, n: int) -> Batch:
        """As large as those of the training split."""
        return example_images(n, self._train.image.shape[1:])

    def box(self, width: int, height: int) -> Box:
        return middle_box(self._train.image.shape[1:], width, height)

    def prototypes(self) -> np.ndarray:
        return prototypes(self._dataset)

    def resident(self, devices: Devices) -> Any:
        """All images and labels of the training split."""
        return devices.replicate(tuple(map(jnp.asarray, self._train)))

    def abstract(self, shape: tuple[int, ...]) -> Any:
        """The whole split, and positions in it."""
        image, label = map(abstract, self._train)
        return Examples(image, label, jax.ShapeDtypeStruct(shape, jnp.int32))  # type: ignore[arg-type]

    def train(
        self, devices: Devices, resident: Any, steps: range, batch_size: int, seeds: Sequence[int]
    ) -> Generator[Any, None, None]:
        """Positions go to the devices when they are asked for."""
        mine, (image, label) = devices.positions(batch_size), resident
        orders = [Order(seed, self.num_train, batch_size) for seed in seeds]
        for step in steps:
            chosen = [order(step)[mine] for order in orders]
            yield Examples(image, label, devices.spread(chosen[0] if len(seeds) == 1 else np.stack(chosen), 0))

    def test(self, devices: Devices, batch_size: int) -> Generator[tuple[int, Any], None, None]:
        """The test split is on the devices as long as the iterator is."""
        image, label = devices.replicate(tuple(map(jnp.asarray, self._test)))
        for start in range(0, self.num_test, batch_size):
            count = min(batch_size, self.num_test - start)
            yield count, Examples(image, label, devices.spread(start + devices.positions(count), 0))
