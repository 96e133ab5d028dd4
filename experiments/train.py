"""Trains a network by a rule, evaluates every exit, and leaves metrics and checkpoints.

.. code-block:: shell

    python -m experiments.train --config=experiments/configs/auglocal_digits.py --workdir=/tmp/digits
    python -m experiments.train --list

Any field of the config can be overridden (``--config.rule.depth=3``), and every config
has a form that ends in seconds (``--config=...py:smoke``). Started again with the same
workdir, a run goes on where it was. Ctrl-C saves first.

Several processes train together on a cluster that JAX knows (``--distributed``), or where each is told of the others
(``--coordinator=HOST:PORT --num_processes=2 --process_id=0``). The workdir is one that all of them see.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import processes
from experiments.cli import UserError, config_flag, run
from experiments.planning import settled
from experiments.registry import listing
from experiments.training import train_and_evaluate

processes.define_flags()


def main(argv: Sequence[str]) -> int:
    """Runs the program."""
    del argv
    if _LIST.value:
        print(listing())
        return 0
    config = _CONFIG()
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: a directory for the run's files")
    processes.join()
    with processes.loss_ends_the_run():
        config = settled(config, Path(_WORKDIR.value), print)
        results = train_and_evaluate(config, Path(_WORKDIR.value), profile=_PROFILE.value)
    return 128 + results.stopped_by if results.stopped_by else 0


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _CONFIG = config_flag("What to train: a file of experiments/configs.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where metrics and checkpoints go.")
    _PROFILE = flags.DEFINE_bool(
        "profile", False, "Trace a few steps into WORKDIR/profile, and print where their time goes, by block."
    )
    _LIST = flags.DEFINE_bool("list", False, "Print the known rules, models, optimizers and data sets, and end.")
    run(main)
