"""The order of examples, which follows from seed and step alone."""

import functools

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


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> Int32[np.ndarray, "b"]:
    """The examples of a step: a slice of its epoch's own permutation."""
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size))
    return _permutation(seed, epoch, num_examples)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, num_examples: int) -> Int32[np.ndarray, "n"]:
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
