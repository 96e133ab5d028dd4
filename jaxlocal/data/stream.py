"""Sets of any size: examples are read, decoded and cropped as steps need them, by Grain.

One element of the pipeline is the data of one step, and follows from the seed and the step's number alone: going
on at a step needs no state of an iterator, and any number of processes gives the same data. Under data parallelism
over several hosts, each reads only the examples that its own devices take.
"""

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlocal.data.augment import Decoded, Recipe, derived, example_images, prepare_with, treated
from jaxlocal.data.images import Box, UnreadableError, centre_box, middle_box, random_box
from jaxlocal.data.inputs import Devices
from jaxlocal.data.order import Order
from jaxlocal.data.records import SEEN, Listed, Records, evenly, in_order
from jaxlocal.objective import Batch
from jaxlocal.task import Task


@dataclasses.dataclass(frozen=True)
class _Training:
    """Reads the examples of a step: those at ``positions`` of its batch."""

    records: Records
    side: int
    here: bool
    smallest: float
    seed: int
    order: Order
    positions: np.ndarray

    def __call__(self, step: int) -> Decoded:
        chosen = self.order(step)

        def read(position: int) -> tuple[np.ndarray, int]:
            rng = np.random.default_rng((self.seed, step, position, 1))  # 1: nor does the order of examples share it

            def box(width: int, height: int) -> Box:
                if not self.smallest:
                    return middle_box((1, 1, 1), width, height)
                return random_box(width, height, rng, self.smallest)

            return self.records.read(int(chosen[position]), box, self.side)

        return _stacked(self.positions, read, self.records, self.side, self.here)


@dataclasses.dataclass(frozen=True)
class _Testing:
    """Reads the examples of a batch to evaluate."""

    records: Records
    side: int
    here: bool
    box: Callable[[int, int], Box]
    chosen: Sequence[np.ndarray]

    def __call__(self, batch: int) -> Decoded:
        def read(index: int) -> tuple[np.ndarray, int]:
            return self.records.read(index, self.box, self.side)

        return _stacked(self.chosen[batch], read, self.records, self.side, self.here)


def _stacked(
    at: np.ndarray, read: Callable[[int], tuple[np.ndarray, int]], records: Records, side: int, here: bool
) -> Decoded:
    """What is read at each place; zeros if this process has no use for it but its shape."""
    image = np.zeros((*at.shape, side, side, records.channels), np.uint8)
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
    """Images that are read and decoded as steps need them.

    Where random parts of them train, they are scaled as they are decoded, and the centre of an image is evaluated
    (:func:`jaxlocal.data.images.centre_box`); else its middle, as large as it can be. What else the recipe says
    is done on the device.

    Args:
      listed: the set.
      image_size: side of the images; 0 for what all have, 224 where they differ.
      workers: processes that read and decode; 0 for a thread of this one.
      test_examples: how many are evaluated; 0 for all.
      augment: as :func:`jaxlocal.data.augment.treated` takes it.
      mean: likewise.
      std: likewise.

    Raises:
      ValueError: if :func:`jaxlocal.data.augment.treated` does, or the images are no squares.
      UnreadableError: if an image that says the mean and deviation of all is damaged.
    """

    batch_axes = 0
    ahead = 2

    def __init__(
        self,
        listed: Listed,
        *,
        image_size: int = 0,
        workers: int = 0,
        test_examples: int = 0,
        augment: str = "recipe",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        height, width = listed.sides(image_size)
        if height != width:
            raise ValueError(f"{listed.name} has images of {height}x{width}: streamed ones are squares, set image_size")
        self._train, self._test, self._workers = listed.train, listed.test, workers
        self._shape = (height, width, listed.train.channels)
        self.treatment = treated(listed.recipe or self._derived(), augment, mean, std)
        self._box = centre_box if self.treatment.smallest else functools.partial(middle_box, self._shape)
        self.prepare = prepare_with(self.treatment._replace(smallest=0.0))
        self.task = Task(len(listed.classes))
        self.classes, self.fingerprint = listed.classes, listed.fingerprint
        self.num_train = len(self._train.source)
        there = len(self._test.source)
        self.num_test = min(there, test_examples or there)
        # Of a user's files, whose classes follow each other, those that are evenly apart.
        self._evaluated = range(self.num_test) if listed.recipe else evenly(there, self.num_test)

    def _derived(self) -> Recipe:
        """Of some of the training images."""
        some = evenly(len(self._train.source), SEEN)
        return derived(in_order(self._train, some, functools.partial(middle_box, self._shape), *self._shape[:2])[0])

    def example(self, n: int) -> Batch:
        return example_images(n, self._shape)

    def box(self, width: int, height: int) -> Box:
        return self._box(width, height)

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
        load = _Training(self._train, self._shape[0], here, self.treatment.smallest, seed, order, positions)
        yield from _loaded(load, steps, self._workers, devices)

    def test(self, devices: Devices, batch_size: int) -> Generator[tuple[int, Any], None, None]:
        """Likewise, by workers of its own.

        Raises:
          UnreadableError: if a record is damaged.
        """
        starts = range(0, self.num_test, batch_size)
        counts = [min(batch_size, self.num_test - start) for start in starts]
        order = np.asarray(self._evaluated)
        chosen = [order[start + devices.positions(count)] for start, count in zip(starts, counts, strict=True)]
        load = _Testing(self._test, self._shape[0], _is_here(devices), self._box, chosen)
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
