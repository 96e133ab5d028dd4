"""TFDS sets of any size: examples are read, decoded and cropped as steps need them, by Grain.

One element of the pipeline is the data of one step, and follows from the seed and the step's number alone: going
on at a step needs no state of an iterator, and any number of processes gives the same data. Under data parallelism
over several hosts, each reads only the examples that its own devices take.
"""

import contextlib
import dataclasses
import gc
import io
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlocal.data.augment import STREAMED, Decoded, example_images, prepare_with
from jaxlocal.data.inputs import Box, Devices
from jaxlocal.data.order import Order
from jaxlocal.data.sources import tfds_builder, tfds_records
from jaxlocal.objective import Batch
from jaxlocal.task import Task


class UnreadableError(ValueError):
    """An example cannot be read."""


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Part of an image, of 8% to 100% of its area and an aspect ratio of 3/4 to 4/3 (uniform in its logarithm).

    The first of ten tries that lies within the image counts; failing all, the largest centred box of such a ratio.

    References:
      Szegedy et al. Going Deeper with Convolutions. CVPR 2015, section 6.
    """
    least, most = 3 / 4, 4 / 3
    for _ in range(10):
        area = rng.uniform(0.08, 1) * width * height
        ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * most)), min(height, round(width / least))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def centre_box(width: int, height: int) -> Box:
    """A centred square: 224 of the 256 pixels that the shorter side is scaled to, or in proportion."""
    side = min(width, height) * 224 / 256
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


class Records(NamedTuple):
    """A split of a data set.

    Attributes:
      name: of both.
      source: encoded images and their labels, by index.
      classes: number of them.
    """

    name: str
    source: Any
    classes: int

    def read(self, index: int, box: Callable[[int, int], Box], side: int) -> tuple[np.ndarray, int]:
        """An example: the part of the image that ``box(width, height)`` says, scaled, and the label.

        Returns:
          ``[side, side, 3]``, 0..255, whatever the image's mode; the label.

        Raises:
          UnreadableError: if the record or the image in it is damaged, or the label is of no class (-1: unknown).
        """
        from PIL import Image, UnidentifiedImageError

        try:
            example = self.source[index]
            with Image.open(io.BytesIO(example["image"])) as opened:
                image = opened.convert("RGB")
            resized = image.resize((side, side), Image.Resampling.BILINEAR, box(*image.size))
            label = int(example["label"])
            if not -1 <= label < self.classes:
                raise ValueError(f"label {label} of {self.classes} classes")
            return np.asarray(resized), label
        except Exception as error:
            unknown = isinstance(error, UnidentifiedImageError)  # whose message is an address
            reason = "no image" if unknown else next(iter(str(error).splitlines()), type(error).__name__)
            raise UnreadableError(f"{self.name}: example {index} cannot be read: {reason}") from error


@dataclasses.dataclass(frozen=True)
class _Training:
    """Reads the examples of a step: those at ``positions`` of its batch."""

    records: Records
    side: int
    here: bool
    seed: int
    order: Order
    positions: np.ndarray

    def __call__(self, step: int) -> Decoded:
        chosen = self.order(step)

        def read(position: int) -> tuple[np.ndarray, int]:
            rng = np.random.default_rng((self.seed, step, position, 1))  # 1: nor does the order of examples share it
            return self.records.read(int(chosen[position]), lambda w, h: random_box(w, h, rng), self.side)

        return _stacked(self.positions, read, self.side, self.here)


@dataclasses.dataclass(frozen=True)
class _Testing:
    """Reads the examples of a batch to evaluate."""

    records: Records
    side: int
    here: bool
    chosen: Sequence[np.ndarray]

    def __call__(self, batch: int) -> Decoded:
        def read(index: int) -> tuple[np.ndarray, int]:
            return self.records.read(index, centre_box, self.side)

        return _stacked(self.chosen[batch], read, self.side, self.here)


def _stacked(at: np.ndarray, read: Callable[[int], tuple[np.ndarray, int]], side: int, here: bool) -> Decoded:
    """What is read at each place; zeros if this process has no use for it but its shape."""
    image = np.zeros((*at.shape, side, side, 3), np.uint8)
    label = np.zeros(at.shape, np.int32)
    for place, index in np.ndenumerate(at):
        if here:
            image[place], label[place] = read(int(index))
            if label[place] < 0:
                raise UnreadableError(f"example {index} has no label: it cannot be trained on, or evaluated")
    return Decoded(image, label)  # type: ignore[arg-type]


def _is_here(devices: Devices) -> bool:
    return any(device.process_index == jax.process_index() for device in devices.devices)


class Streamed:
    """A TFDS set in the array_record format, with features ``image`` and ``label``.

    Training images are random parts, scaled; flipped and normalised on the device. Images to evaluate are centre
    crops, of the split ``test`` if it has labels, else of ``validation``. All are RGB.

    Args:
      name: as TFDS has it.
      data_dir: TFDS directory; None for TFDS's own default.
      image_size: side of the images.
      workers: processes that read and decode; 0 for a thread of this one.
      test_examples: how many are evaluated; 0 for all.

    Raises:
      ValueError: if TFDS does not know the name, or the set is not of labelled images.
      MissingDataError: if it was not prepared.
      UnreadableError: if the first example of the split ``test`` is damaged.
    """

    batch_axes = 0
    ahead = 2
    treatment = STREAMED

    def __init__(
        self,
        name: str,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        image_size: int = 224,
        workers: int = 0,
        test_examples: int = 0,
    ) -> None:
        import tensorflow_datasets as tfds

        builder = tfds_builder(name, data_dir)

        def records(split: str) -> Records:
            source = tfds_records(builder, split, decoders={"image": tfds.decode.SkipDecoding()})
            return Records(f"data set {name}, split {split}", source, builder.info.features["label"].num_classes)

        labelled = "test" in builder.info.splits and records("test").read(0, centre_box, 1)[1] >= 0
        self._train, self._test = records("train"), records("test" if labelled else "validation")
        for split in (self._train, self._test):
            if not len(split.source):
                raise ValueError(f"{split.name} is empty")
        self._workers = workers
        self.task = Task(builder.info.features["label"].num_classes)
        self._shape = (image_size, image_size, 3)
        self.num_train = len(self._train.source)
        self.num_test = min(len(self._test.source), test_examples or len(self._test.source))
        self.prepare = prepare_with(self.treatment)

    def example(self, n: int) -> Batch:
        return example_images(n, self._shape)

    def box(self, width: int, height: int) -> Box:
        return centre_box(width, height)

    def prototypes(self) -> np.ndarray:
        """Not of images that are cropped at random.

        Raises:
          ValueError: always.
        """
        raise ValueError("prototypes of classes need a data set in memory: give another model.embedding")

    def resident(self, devices: Devices) -> Any:
        del devices  # nothing

    def abstract(self, shape: tuple[int, ...]) -> Any:
        image = jax.ShapeDtypeStruct((*shape, *self._shape), jnp.uint8)
        return Decoded(image, jax.ShapeDtypeStruct(shape, jnp.int32))  # type: ignore[arg-type]

    def train(
        self, devices: Devices, resident: Any, steps: range, batch_size: int, seeds: Sequence[int]
    ) -> Generator[Any, None, None]:
        """Steps are made ready while those before them run.

        Raises:
          UnreadableError: if a record is damaged.
          ValueError: if there are several seeds.
        """
        del resident
        (seed,) = seeds
        positions, here = devices.positions(batch_size), _is_here(devices)
        order = Order(seed, self.num_train, batch_size)
        load = _Training(self._train, self._shape[0], here, seed, order, positions)
        yield from _loaded(load, steps, self._workers, devices)

    def test(self, devices: Devices, batch_size: int) -> Generator[tuple[int, Any], None, None]:
        """Likewise, by workers of its own.

        Raises:
          UnreadableError: if a record is damaged.
        """
        starts = range(0, self.num_test, batch_size)
        counts = [min(batch_size, self.num_test - start) for start in starts]
        chosen = [start + devices.positions(count) for start, count in zip(starts, counts, strict=True)]
        load = _Testing(self._test, self._shape[0], _is_here(devices), chosen)
        with contextlib.closing(_loaded(load, range(len(counts)), self._workers, devices)) as batches:
            yield from zip(counts, batches, strict=True)


def _loaded(
    load: _Training | _Testing, indices: range, workers: int, devices: Devices
) -> Generator[Decoded, None, None]:
    """``load(i)`` of each index, on the devices; two are there ahead of time, one of them in the thread's hands."""
    import grain
    from absl import flags
    from grain.experimental import ThreadPrefetchIterDataset

    if not indices:
        return
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its own, which no program has to parse
    inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    host = grain.MapDataset.range(indices.start, indices.stop).map(load).to_iter_dataset(inline)
    decoded = host.mp_prefetch(
        grain.MultiprocessingOptions(workers if load.here else 0), worker_init_fn=_end_with_parent
    )

    def place(data: Decoded) -> Decoded:  # of a copy: on a CPU, arrays would go on using the workers' memory
        return devices.spread(jax.tree.map(np.array, data) if workers else data, 0)

    ready = ThreadPrefetchIterDataset(decoded.map(place), prefetch_buffer_size=1)
    iterator = iter(ready)
    with _signals_blocked():
        iterator.start_prefetch()
    try:
        yield from iterator
    finally:
        iterator.close()
        del iterator, ready
        gc.collect()  # their semaphores lie in cycles; freed while others are made, they would give warnings


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Threads and processes that begin in here leave Ctrl-C and SIGTERM to the main thread, which ends them."""
    resource_tracker.ensure_running()  # it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(index: int, count: int) -> None:
    """Runs in each worker, which would outlive a killed parent otherwise."""
    del index, count
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
