"""The classes that a trained network takes images for."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.app.errors import UserError
from experiments.training.trained import Trained
from jaxlocal import data, diagnostics
from jaxlocal.block import Block
from jaxlocal.data import images
from jaxlocal.data.augment import Decoded
from jaxlocal.executors import TrainState
from jaxlocal.feed import Feed


def lines(trained: Trained, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each image file, its class, how likely that and the next ones are, and the class at every exit.

    Classes are numbers; probabilities go by names, where the data set has them, and so does ``name``. Of a file that
    cannot be read the line has the ``error`` in their place.

    Args:
      trained: of one seed.
      names: of the files.
    """
    size, classes = trained.experiment.config.eval_batch_size, trained.experiment.dataset.classes
    for start in range(0, len(names), size):
        part = [_read_or_error(name, trained.experiment.dataset) for name in names[start : start + size]]
        pixels = [image for image in part if not isinstance(image, UserError)]
        exits = iter(predict(trained, np.stack(pixels)).swapaxes(0, 1) if pixels else ())
        for name, image in zip(names[start : start + size], part, strict=True):
            if isinstance(image, UserError):
                yield {"image": name, "error": str(image)}
                continue
            of_image = next(exits)
            best = np.argsort(-of_image[-1])[:3]
            likely = {classes[k] if classes else str(k): round(float(of_image[-1, k]), 4) for k in best}
            by_exit = [int(k) for k in np.argmax(of_image, axis=1)]
            named = {"name": classes[best[0]]} if classes else {}
            yield {"image": name, "class": int(best[0]), **named, "probabilities": likely, "exits": by_exit}


def _read_or_error(path: str, dataset: data.Input) -> np.ndarray | UserError:
    try:
        return read(path, dataset)
    except UserError as error:
        return error


def read(path: str, dataset: data.Input) -> np.ndarray:
    """An image file as ``[h, w, c]``, 0..255: the part that the data set's evaluation sees, resized.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        return images.read(path, dataset.box, dataset.example(1).input.shape[1:])
    except images.UnreadableError as error:
        raise UserError(f"image {path} cannot be read: {error}") from error


def predict(trained: Trained, images: np.ndarray) -> np.ndarray:
    """Probabilities of the classes at every exit that predicts them, ``[exits, n, k]``.

    Args:
      trained: of one seed.
      images: ``[n, h, w, c]``, 0..255.
    """
    experiment = trained.experiment
    network: Any = experiment.blocks, experiment.feed, experiment.dataset, experiment.dtype
    exits = _exits(*network)
    batch = Decoded(jnp.asarray(images), jnp.zeros(len(images), jnp.int32))
    return np.stack(jax.device_get(exits(trained.state, batch)))


@functools.lru_cache(maxsize=1)
def _exits(
    blocks: tuple[Block, ...], feed: Feed, dataset: data.Input, dtype: Any
) -> Callable[[TrainState, Decoded], list[jax.Array]]:
    """The program of :func:`predict`: of one network it is compiled once for each number of images."""

    @jax.jit
    def exits(state: TrainState, data: Decoded) -> list[jax.Array]:
        batch = dataset.prepare(data, state.key, train=False)
        seen = diagnostics.observe(blocks, feed, state, batch, dtype=dtype)
        return [jax.nn.softmax(logits) for logits in seen.logits if logits is not None]

    return exits
