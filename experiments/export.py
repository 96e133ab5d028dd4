r"""Takes a trained network out of a run, without its auxiliary heads: safetensors, Orbax, and a model card.

.. code-block:: shell

    python -m experiments.export --workdir=/tmp/digits --output=/tmp/model

Tensors are called ``unit_3.params.conv1.kernel``: the unit's number, the collection, the path in the unit. The
network's own classifier is ``classifier``. :func:`load` reads them back.
"""

import json

import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from flax import traverse_util
from safetensors.numpy import save

from experiments.app.errors import UserError
from experiments.app.files import given_path, no_pattern, saving
from experiments.app.program import data_dir_flag, run
from experiments.pages.card import WEIGHTS, backbone, card
from experiments.training.trained import restore
from experiments.training.workdir import load_record

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
_OUTPUT = flags.DEFINE_string("output", None, "A directory for the network; new, or empty.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
_DATA_DIR = data_dir_flag()


def main() -> None:
    """Writes weights, config and card."""
    if not _WORKDIR.value or not _OUTPUT.value:
        raise UserError("--workdir and --output are needed: the directory of the run, and one for the network")
    workdir, output = given_path(_WORKDIR.value, "--workdir"), given_path(_OUTPUT.value, "--output")
    trained = restore(workdir, _CHECKPOINT.value).with_data(_DATA_DIR.value).one_seed()
    parts = backbone(trained)
    flat = traverse_util.flatten_dict(parts, sep=".")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is not an empty directory: give a new one")
    config = trained.experiment.config
    exits = trained.experiment.evaluate(trained.state)[0]
    with saving(output):
        output.mkdir(parents=True, exist_ok=True)
        about = {"format": "jaxlocal", "model": json.dumps(config.model.to_dict()), "step": str(trained.step)}
        (output / WEIGHTS).write_bytes(save({name: np.ascontiguousarray(x) for name, x in flat.items()}, about))
        try:
            with no_pattern(output.absolute()) as plain, ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(plain / "orbax", parts)
        except ValueError as error:  # of TensorStore
            raise OSError(str(error).splitlines()[0]) from error
        (output / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        (output / "README.md").write_text(card(trained, load_record(workdir), exits, parts), encoding="utf-8")
    print(f"{len(flat)} tensors of {len(parts)} parts at step {trained.step}: {output}")


if __name__ == "__main__":
    run(main)
