r"""The classes that a trained network takes image files for.

.. code-block:: shell

    python -m experiments.predict --workdir=/tmp/digits one.png two.png

Of images of any size the part that evaluation would see is resized to what the network was trained on, and
normalised as there.
Classes are numbers, in the order of the data set.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from experiments.app.errors import UserError
from experiments.app.program import required, run
from experiments.training.classify import predict, read
from experiments.training.trained import restore

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")


def main(*files: str) -> None:
    """One line of JSON for each image."""
    if not files:
        raise UserError("no image given: name files after the flags, as --workdir=DIR one.png two.png")
    trained = restore(Path(required(_WORKDIR, "the directory of the run")), _CHECKPOINT.value).one_seed()
    size = trained.experiment.config.eval_batch_size
    for start in range(0, len(files), size):
        names = files[start : start + size]
        exits = predict(trained, np.stack([read(Path(name), trained.experiment.dataset) for name in names]))
        for name, of_image in zip(names, exits.swapaxes(0, 1), strict=True):
            best = np.argsort(-of_image[-1])[:3]
            likely = {str(k): round(float(of_image[-1, k]), 4) for k in best}
            by_exit = [int(k) for k in np.argmax(of_image, axis=1)]
            print(json.dumps({"image": name, "class": int(best[0]), "probabilities": likely, "exits": by_exit}))


if __name__ == "__main__":
    run(main, arguments=True)
