"""Restores a run and evaluates every exit on the test split.

.. code-block:: shell

    python -m experiments.evaluate --workdir=/tmp/digits
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import build as building
from experiments.cli import UserError, run
from experiments.record import format_blocks
from experiments.trained import restore


def main(argv: Sequence[str]) -> None:
    """Prints the exits as a table and as one JSON line, for each seed."""
    del argv
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: the directory of the run to evaluate")
    workdir = Path(_WORKDIR.value)
    config, experiment, step, state = restore(workdir, _CHECKPOINT.value)
    for i, exits in enumerate(building.evaluate(experiment, state, config)):
        seed = config.seed + i
        print(f"{workdir} at step {step} ({_CHECKPOINT.value} checkpoint), seed {seed}\n{format_blocks(exits)}")
        values = {name: [exit_.get(name) for exit_ in exits] for name in ("accuracy", "loss")}
        print(json.dumps({"step": step, "seed": seed, **values}))


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
    _CHECKPOINT = flags.DEFINE_enum(
        "checkpoint", "last", ["last", "best"], "Which checkpoint; best is by accuracy on the test split."
    )
    run(main)
