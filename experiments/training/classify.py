"""The classes that a trained network takes images for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from experiments.app.errors import UserError
from experiments.training.trained import Trained
from jaxlocal import data, diagnostics
from jaxlocal.data.augment import Decoded


def lines(trained: Trained, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each image file, its class, how likely that and the next ones are, and the class at every exit.

    Args:
      trained: of one seed.
      names: of the files.

    Raises:
      UserError: as :func:`read`.
    """
    size = trained.experiment.config.eval_batch_size
    for start in range(0, len(names), size):
        part = names[start : start + size]
        exits = predict(trained, np.stack([read(Path(name), trained.experiment.dataset) for name in part]))
        for name, of_image in zip(part, exits.swapaxes(0, 1), strict=True):
            best = np.argsort(-of_image[-1])[:3]
            likely = {str(k): round(float(of_image[-1, k]), 4) for k in best}
            by_exit = [int(k) for k in np.argmax(of_image, axis=1)]
            yield {"image": name, "class": int(best[0]), "probabilities": likely, "exits": by_exit}


def read(path: Path, dataset: data.Input) -> np.ndarray:
    """An image file as ``[h, w, c]``, 0..255: the part that the data set's evaluation sees, resized.

    Raises:
      UserError: if it cannot be read.
    """
    shape = height, width, channels = dataset.example(1).input.shape[1:]
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            fitted = upright.resize((width, height), Image.Resampling.BILINEAR, dataset.box(*upright.size))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no image that can be read, or too large a one"
        raise UserError(f"image {path}: {reason}") from error
    return np.asarray(fitted, np.uint8).reshape(shape)


def predict(trained: Trained, images: np.ndarray) -> np.ndarray:
    """Probabilities of the classes at every exit that predicts them, ``[exits, n, k]``.

    Args:
      trained: of one seed.
      images: ``[n, h, w, c]``, 0..255.
    """
    experiment, state = trained.experiment, trained.state

    @jax.jit
    def exits(data: Decoded) -> list[jax.Array]:
        batch = experiment.dataset.prepare(data, state.key, train=False)
        seen = diagnostics.observe(experiment.blocks, experiment.feed, state, batch, dtype=experiment.dtype)
        return [jax.nn.softmax(logits) for logits in seen.logits if logits is not None]

    return np.stack(jax.device_get(exits(Decoded(jnp.asarray(images), jnp.zeros(len(images), jnp.int32)))))
