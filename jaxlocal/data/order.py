"""The order of examples, which follows from seed and step alone."""

import numpy as np
from jaxtyping import Int32


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in one pass over the data; the remainder is left out of that pass.

    Raises:
      ValueError: if the batch is larger than the data, or not positive.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch size {batch_size} with {num_examples} examples: choose 1 to {num_examples}")
    return num_examples // batch_size


class Order:
    """The examples of steps, for one seed. It keeps the permutation of the epoch that it was asked for last."""

    def __init__(self, seed: int, num_examples: int, batch_size: int) -> None:
        self._seed, self._num_examples, self._batch_size = seed, num_examples, batch_size
        self._per_epoch = steps_per_epoch(num_examples, batch_size)
        self._drawn: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int) -> Int32[np.ndarray, "b"]:
        """The examples of a step: a slice of its epoch's own permutation."""
        epoch, position = divmod(step, self._per_epoch)
        drawn = self._drawn  # looked at once: workers' threads may share this
        if drawn is None or drawn[0] != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(self._num_examples).astype(np.int32)
            drawn = self._drawn = epoch, order
        return drawn[1][position * self._batch_size : (position + 1) * self._batch_size]


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> Int32[np.ndarray, "b"]:
    """The examples of a single step; of many, an :class:`Order` draws each epoch once."""
    return Order(seed, num_examples, batch_size)(step)
