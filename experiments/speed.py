r"""Seconds of an update, relative to backprop's, against its memory: the frontier.

.. code-block:: shell

    python -m experiments.speed --models='resnet(depth=32)' --rules='remat(backprop),dgl,auglocal(depth=2)' \
        --cuts=all,even:4 --batch_sizes=128 --executors=fused,streamed --accumulate=1,4 --workdir=/tmp/speed

Cases of one model, batch and dtype take turns with its backprop, eight at a time, so that whatever else the machine
does falls on all of them; so nine states are in memory together. Their lines of ``speed.jsonl`` are written when the
eight are done; interrupted, the same command goes on with the next. See ``docs/memory.md``. A model that reads tokens
(``--models='gpt(layers=8)'``) is given random ones, and its speed is in tokens.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import jax
import numpy as np
from absl import flags

from experiments.app.program import run
from experiments.cost.timed import Runner, turns
from experiments.recipe.experiment import Experiment
from experiments.training.metrics import counted, metrics_of
from experiments.trials import torch_twin
from experiments.trials.cases import Case, built, define_flags, parse_cases
from experiments.trials.frontier import (
    MEMORY,
    Column,
    Height,
    Log,
    Numbers,
    against,
    analyse,
    attempt,
    memory_suffices,
    report,
)
from jaxlocal.variables import size

define_flags(flags.FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each case.", lower_bound=1)
_AGAINST = flags.DEFINE_enum("against", None, ["torch"], "What else takes turns: the same steps in PyTorch.")
_LEAST = flags.DEFINE_float("least", 0.2, "Seconds that a turn lasts at least.", lower_bound=0)

TOGETHER = 8  # cases that take turns with backprop

_COLUMNS: tuple[Column, ...] = (
    *MEMORY,
    ("s / update", lambda x, _: f"{x['seconds']:.4f}"),
    ("img/s", lambda x, _: f"{x['images_per_second']:,.0f}" if "images_per_second" in x else None),
    ("tokens/s", lambda x, _: f"{x['tokens_per_second']:,.0f}" if "tokens_per_second" in x else None),
    ("time ÷ backprop's", against(lambda x: x["time"])),
    ("time ÷ FLOPs", against(lambda x: x["time"] / x["flops"])),
)


def _against_torch(layout: str) -> Callable[[Numbers, Numbers], str | None]:
    def say(x: Numbers, base: Numbers) -> str | None:
        del base
        return f"{np.median(x['torch'][layout]):.2f}" if layout in x.get("torch", {}) else None

    return say


_AGAINST_TORCH: tuple[Column, ...] = (
    ("time ÷ PyTorch's, channels last", _against_torch("channels_last")),
    ("NCHW", _against_torch("contiguous_format")),
    ("time ÷ PyTorch's", _against_torch("tokens")),
)
_HEIGHT: Height = ("time of an update ÷ backprop's", lambda x, _: x["time"])


def _lacks(case: Case, known: Numbers | None) -> bool:
    """Whether a case is to be measured, for what is known of it."""
    if known is None:
        return True
    return _AGAINST.value == "torch" and "skipped" not in known and "torch" not in known and torch_twin.has_twin(case)


def measure(group: Sequence[Case]) -> dict[Case, Numbers]:
    """The numbers of a few cases of a group, backprop first. Where batches accumulate, time is of a whole update."""
    runs: dict[str, Experiment] = {}
    twins: dict[str, Runner] = {}

    def compiled(case: Case) -> Numbers:
        experiment = built(case)
        numbers = analyse(experiment)
        turns({case.label(): experiment}, rounds=1, least=0)  # does it fit?
        runs[case.label()] = experiment
        if _AGAINST.value == "torch" and torch_twin.has_twin(case):
            state = jax.eval_shape(experiment.init)
            parameters = size([block.variables["params"] for block in state.blocks])
            for layout, twin in torch_twin.steps(case, experiment.network, parameters).items():
                twins[f"{case.label()}, {layout}"] = twin
        return numbers

    numbers = {}
    for i, case in enumerate(group):
        print(f"  [{i + 1}/{len(group)}] compiling {case.label()}", flush=True)
        numbers[case] = attempt(case, compiled)
    if not runs:
        return numbers
    print(f"  {len(runs)} cases take turns", flush=True)
    with memory_suffices(f"{len(runs)} cases side by side; measure fewer in one call"):
        rounds = turns(runs, rounds=_ROUNDS.value, least=_LEAST.value, beside=twins)
    updates = {case: case.accumulate * np.array(rounds[case.label()]) for case in group if case.label() in runs}
    for case, took in updates.items():
        seconds, of = float(np.median(took)), runs[case.label()]
        numbers[case] |= {
            "seconds": seconds,
            f"{metrics_of(of).counted}_per_second": counted(of, case.batch_size) / seconds,
            "rounds": took.tolist(),
        }
        if case.baseline in updates:  # within a round: machines' speeds drift
            numbers[case]["time"] = float(np.median(took / updates[case.baseline]))
        of_twin = {name.rpartition(", ")[2]: rounds[name] for name in twins if name.rpartition(", ")[0] == case.label()}
        if of_twin:
            numbers[case]["torch"] = {layout: (took / np.array(its)).tolist() for layout, its in of_twin.items()}
            numbers[case]["torch_seconds"] = {layout: float(np.median(its)) for layout, its in of_twin.items()}
    return numbers


def main() -> None:
    """Measures the cases that are not known yet, then writes the table and the picture."""
    if _AGAINST.value == "torch":
        torch_twin.pytorch()
    cases, log = parse_cases(flags.FLAGS), Log(flags.FLAGS.workdir, "speed")
    for name, members in groupby(cases, lambda case: case.group):
        group = list(members)
        print(name, flush=True)
        while todo := [case for case in group if _lacks(case, log.known.get(case))][:TOGETHER]:
            for case, numbers in measure(list(dict.fromkeys([group[0].baseline, *todo]))).items():
                log.add(case, numbers)
            jax.clear_caches()  # compiled programs take more than memory: the system limits their number
    columns = _COLUMNS + (_AGAINST_TORCH if _AGAINST.value == "torch" else ())
    report(log, cases, columns, flags.FLAGS.axis, _HEIGHT, "frontier.png")


if __name__ == "__main__":
    run(main)
