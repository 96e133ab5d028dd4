r"""Injects faults into training runs, and holds what they leave against a run that none has met.

.. code-block:: shell

    python -m experiments.faults --kills=50 --limits=20 --workdir=/tmp/faults
    python -m experiments.faults --soak=20000 --workdir=/tmp/soak
    python -m experiments.faults --nocut --nopoison --around --images=500 --workdir=/tmp/around
    python -m experiments.faults --kills=5 --workdir=/tmp/text \
        --config=experiments/configs/backprop_shakespeare.py:smoke --config.rule=greedy --config.cuts=3

Of a config that is given the runs have sixty steps, whatever it says; the default is an MLP of four blocks on digits.
After each fault a run has to end with bitwise the same parameters, metrics file and best checkpoint, or to stop with
one line. Everything goes to ``summary.json``; where ``lost`` in it is not 0, something came out otherwise, and the exit
code is 1. Kills take about five seconds each.
"""

import random
from typing import Any

from absl import flags

from experiments.app.errors import UserError
from experiments.app.files import directory, write_json
from experiments.app.program import config_flag, required_path, run
from experiments.training.workdir import check
from experiments.trials.injected import Outcome, cuts, kills, limits, poison, short, small, soak
from experiments.trials.surroundings import around, mutated

_CONFIG = config_flag("What is trained.", small)
_KILLS = flags.DEFINE_integer("kills", 0, "How often a run is killed at a random moment.", lower_bound=0)
_LIMITS = flags.DEFINE_integer("limits", 0, "How often files may not grow beyond a random limit.", lower_bound=0)
_CUT = flags.DEFINE_bool("cut", True, "Empty and halve every file of a checkpoint, one after another.")
_POISON = flags.DEFINE_bool("poison", True, "Make each block's loss NaN at one step.")
_AROUND = flags.DEFINE_bool("around", False, "Odd directories and machines; signals while nobody reads the output.")
_IMAGES = flags.DEFINE_integer("images", 0, "How many images are damaged at random, and read.", lower_bound=0)
_SOAK = flags.DEFINE_integer("soak", 0, "Steps of a long run that is watched.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments and the limits.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs and summary.json go.")


def main() -> int:
    """Runs what the flags ask for; exit code 1 if anything was lost."""
    workdir, rng = directory(required_path(_WORKDIR, "a directory for the runs")), random.Random(_SEED.value)
    config, summary = short(_CONFIG()), dict[str, Any]()

    def note(what: str, found: dict[str, Any]) -> None:
        summary[what] = found
        write_json(workdir / "summary.json", summary)
        print(f"{what}: {found}", flush=True)

    whole = workdir / "whole"
    check(whole, config)
    if not whole.exists():
        outcome = Outcome(config, whole)
        if outcome.code:
            raise UserError(f"the undisturbed run ended with code {outcome.code}: {outcome.errors[-300:]}")
    if _KILLS.value:
        note("kills", kills(_KILLS.value, whole, workdir / "killed", rng))
    if _CUT.value:
        note("cuts", cuts(whole, workdir / "cut"))
    if _LIMITS.value:
        note("limits", limits(_LIMITS.value, whole, workdir / "limited", rng))
    if _POISON.value:
        note("poison", poison(config, workdir / "poisoned"))
    if _AROUND.value:
        note("around", around(whole, workdir / "around", rng))
    if _IMAGES.value:
        note("images", mutated(_IMAGES.value, rng))
    if _SOAK.value:
        note("soak", soak(config, _SOAK.value, workdir / "soak"))
    return int(any(found["lost"] for found in summary.values()))


if __name__ == "__main__":
    run(main)
