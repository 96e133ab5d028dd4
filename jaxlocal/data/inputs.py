"""Where the data of steps come from: a data set in memory, or one that is read as it goes."""

import functools
import zlib
from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlocal.data.augment import Examples, derived, example_images, prepare_with, recipe, treated
from jaxlocal.data.images import Box, middle_box
from jaxlocal.data.order import Order
from jaxlocal.data.prototypes import prototypes
from jaxlocal.data.records import evenly
from jaxlocal.data.sources import Dataset, Split
from jaxlocal.feed import Prepare
from jaxlocal.objective import Batch
from jaxlocal.task import Task
from jaxlocal.variables import abstract


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
      classes: their names, where they are known.
      fingerprint: of the examples; two sets differ if theirs do, and nothing follows where one has none.
      prepare: makes a batch of a step's data, inside the step.
      batch_axes: which of a step's data belong to single examples, as executors take it.
      ahead: steps whose data may be on the devices before they begin.
    """

    task: Task
    num_train: int
    num_test: int
    classes: tuple[str, ...]
    prepare: Prepare
    batch_axes: Any
    ahead: int

    @property
    def fingerprint(self) -> str: ...

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


def _as_split(split: Split) -> Split:
    """Labels as 32 bits, and lists as arrays."""
    image, label = np.asarray(split.image), np.asarray(split.label)
    return Split(image, label.astype(np.int32) if np.issubdtype(label.dtype, np.integer) else label)


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
        if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
            raise ValueError(f"{where} has labels {label.shape} of {label.dtype}: give whole numbers [n]")
        if label.min() < 0 or label.max() >= dataset.num_classes:
            raise ValueError(
                f"{where} has labels {label.min()} to {label.max()}: {dataset.num_classes} classes count from 0"
            )
    if dataset.train.image.shape[1:] != dataset.test.image.shape[1:]:
        shapes = " and ".join(str(split.image.shape[1:]) for split in (dataset.train, dataset.test))
        raise ValueError(f"data set {dataset.name} has images of {shapes} in its splits: give both one shape")
    if dataset.classes and len(dataset.classes) != dataset.num_classes:
        raise ValueError(f"data set {dataset.name} names {len(dataset.classes)} of {dataset.num_classes} classes")


FINGERPRINTED = 1024  # images of a split, at most, by which a set is told from others


class InMemory:
    """A decoded data set: the training split stays on the devices, and a step's data say which examples to take.

    Args:
      dataset: of :func:`jaxlocal.data.load`, noise, or a user's own: of any name. One that has no recipe, nor a name
        that is known, is normalised by the mean and deviation of its training images.
      augment: as :func:`jaxlocal.data.augment.treated` takes it.
      mean: likewise.
      std: likewise.

    Raises:
      ValueError: if a split is empty, its images are not bytes (so none is NaN), a label is no number or of no class,
        or :func:`jaxlocal.data.augment.treated` raises it.
    """

    batch_axes = Examples(None, None, 0)  # type: ignore[arg-type]
    ahead = 0

    def __init__(
        self, dataset: Dataset, *, augment: str = "recipe", mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        train, test = dataset.train, dataset.test
        dataset = dataset._replace(train=_as_split(train), test=_as_split(test))
        _check(dataset)
        self.task = Task(dataset.num_classes)
        self.num_train, self.num_test = len(dataset.train.label), len(dataset.test.label)
        known = dataset.recipe or recipe(dataset.name)
        if known is None or len(known.mean) != dataset.train.image.shape[-1]:
            known = derived(dataset.train.image)
        self.treatment = treated(known, augment, mean, std)
        self.prepare = prepare_with(self.treatment)
        self.classes = dataset.classes
        self._dataset, self._train, self._test = dataset, dataset.train, dataset.test

    def example(self, n: int) -> Batch:
        """As large as those of the training split."""
        return example_images(n, self._train.image.shape[1:])

    def box(self, width: int, height: int) -> Box:
        return middle_box(self._train.image.shape[1:], width, height)

    def prototypes(self) -> np.ndarray:
        return prototypes(self._dataset, self.treatment)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Checksum of all labels, and of some images: of noise there may be any number."""
        checksum = 0
        for image, label in (self._train, self._test):
            for part in (label, image[evenly(len(image), FINGERPRINTED)]):
                checksum = zlib.crc32(part.tobytes(), checksum)
        return f"{checksum:08x}"

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
