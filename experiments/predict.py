r"""The classes that a trained network takes image files for.

.. code-block:: shell

    python -m experiments.predict --workdir=/tmp/digits one.png two.png

Of images of any size the part that evaluation would see is resized to what the network was trained on, and
normalised as there.
Classes are numbers, in the order of the data set.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, ImageOps

from experiments.build import DTYPES
from experiments.cli import UserError, run
from experiments.trained import Trained, one_seed, restore
from jaxlocal import data, diagnostics
from jaxlocal.data.augment import Decoded


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
        dtype = DTYPES[trained.config.dtype]
        seen = diagnostics.observe(experiment.blocks, experiment.feed, state, batch, dtype=dtype)
        return [jax.nn.softmax(logits) for logits in seen.logits if logits is not None]

    return np.stack(jax.device_get(exits(Decoded(jnp.asarray(images), jnp.zeros(len(images), jnp.int32)))))


def main(argv: Sequence[str]) -> None:
    """One line of JSON for each image."""
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: the directory of the run")
    if len(argv) < 2:
        raise UserError("no image given: name files after the flags, as --workdir=DIR one.png two.png")
    trained = one_seed(restore(Path(_WORKDIR.value), _CHECKPOINT.value))
    size = trained.config.eval_batch_size
    for start in range(1, len(argv), size):
        names = argv[start : start + size]
        exits = predict(trained, np.stack([read(Path(name), trained.experiment.dataset) for name in names]))
        for name, of_image in zip(names, exits.swapaxes(0, 1), strict=True):
            best = np.argsort(-of_image[-1])[:3]
            likely = {str(k): round(float(of_image[-1, k]), 4) for k in best}
            by_exit = [int(k) for k in np.argmax(of_image, axis=1)]
            print(json.dumps({"image": name, "class": int(best[0]), "probabilities": likely, "exits": by_exit}))


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
    run(main, arguments=True)
