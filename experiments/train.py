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

from absl import flags

from experiments.app import processes
from experiments.app.program import config_flag, required_path, run
from experiments.cost.search import settled
from experiments.recipe.build import changed
from experiments.recipe.registry import listing
from experiments.training.loop import train_and_evaluate
from experiments.training.workdir import check, holds_run, load_config

processes.define_flags()
_CONFIG = config_flag("What to train.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where metrics and checkpoints go.")
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Trace a few steps into WORKDIR/profile, and print where their time goes, by block."
)
_LIST = flags.DEFINE_bool("list", False, "Print the known configs, rules, models, optimizers and data sets, and end.")


def main() -> int:
    """Runs the program."""
    if _LIST.value:
        print(listing())
        return 0
    config = _CONFIG()
    workdir = required_path(_WORKDIR, "a directory for the run's files")
    processes.join()
    with processes.loss_ends_the_run():
        if holds_run(workdir) and str(config.get("cuts")).startswith("auto:"):
            config = changed(config, cuts=load_config(workdir).get("cuts"))  # that were found
        check(workdir, config)  # before data are loaded, or cuts looked for
        experiment = settled(config, say=print)
        results = train_and_evaluate(experiment, workdir, profile=_PROFILE.value)
    return 128 + results.stopped_by if results.stopped_by else 0


if __name__ == "__main__":
    run(main)
