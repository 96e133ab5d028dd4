"""Restores a run and evaluates every exit on the test split.

.. code-block:: shell

    python -m experiments.evaluate --workdir=/tmp/digits
"""

from absl import flags

from experiments.app.files import as_json
from experiments.app.program import data_dir_flag, required_path, run
from experiments.training.metrics import metrics_of
from experiments.training.trained import restore

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "last", ["last", "best"], "Which checkpoint; best by error on the test split, or by loss on a text."
)
_DATA_DIR = data_dir_flag()


def main() -> None:
    """Prints the exits as a table and as one JSON line, for each seed."""
    workdir = required_path(_WORKDIR, "the directory of the run to evaluate")
    experiment, step, state = restore(workdir, _CHECKPOINT.value).with_data(_DATA_DIR.value)
    said = metrics_of(experiment)
    for seed, exits in zip(experiment.seeds, experiment.evaluate(state), strict=True):
        print(f"{workdir} at step {step} ({_CHECKPOINT.value} checkpoint), seed {seed}\n{said.lines([exits])}")
        values = {name: [exit_.get(name) for exit_ in exits] for name in ("accuracy", "loss")}
        print(as_json({"step": step, "seed": seed, **values}))


if __name__ == "__main__":
    run(main)
