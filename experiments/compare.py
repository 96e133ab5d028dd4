r"""Trains several rules under one recipe and several seeds, and puts them side by side.

.. code-block:: shell

    python -m experiments.compare --config=experiments/configs/auglocal_digits.py \
        --rules='auglocal,man(dgl),backprop' --seeds=3 --workdir=/tmp/compare

Rules are written as calls: ``dgl``, ``auglocal(depth=3)``, ``man(infopro(contrast=True))``.
The config's own rule keeps its parameters where it is mentioned by its bare name. What each
step costs is measured first, in a process of its own; then the speeds, by turns; then
every rule trains with every seed. The table goes to the terminal with the columns that
``--columns`` names, and with all of them to ``table.md``; the picture to ``comparison.png``.
Interrupted, it goes on where it was; finished runs are kept, so that rules and seeds can be
added later (seeds trained together are one run). Memory is all that a step has to have at its
highest point, by the compiler's plan: state, batch, activations, gradients; without the data set.

.. code-block:: shell

    python -m experiments.compare --config=experiments/configs/backprop_shakespeare.py \
        --rules='backprop,greedy,auglocal(depth=1)' --cuts='3;2,3,4' --seeds=3 --workdir=/tmp/text

trains each rule under each of the cuts, and backprop, which has none, once. What a rule cannot have is named at the
start, and left out. A run is in ``WORKDIR/RULE/seed_N``, and with ``--cuts`` in ``WORKDIR/RULE@cuts=CUTS/seed_N``,
where all but letters, digits, ``.``, ``=`` and ``-`` is ``_``: ``greedy_cuts=2_3_4``. A run of ``experiments.train``
under the same config that is moved there is taken over.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.app.calls import parse_call, parse_calls
from experiments.app.environment import environment
from experiments.app.errors import UserError, one_of
from experiments.app.files import as_directory, directory, write_json
from experiments.app.program import config_flag, required_path, run
from experiments.cost.compiled import lowered_flops, resident_bytes
from experiments.cost.search import settled, widened
from experiments.cost.timed import measure_alone, speeds
from experiments.pages.comparison import COLUMNS, Row, picture, sentence, summarise, table
from experiments.recipe.build import build, changed, rebuilt
from experiments.recipe.devices import memory_of
from experiments.recipe.experiment import Experiment
from experiments.training.loop import train_and_evaluate
from experiments.training.metrics import metrics_of
from experiments.training.workdir import check
from experiments.trials.combinations import combinations, settled_by
from jaxlocal.data import Input
from jaxlocal.executors import Cost

_CONFIG = config_flag("The recipe.")
_RULES = flags.DEFINE_string("rules", "auglocal,backprop", "Rules to train, as calls: auglocal,man(dgl).")
_CUTS = flags.DEFINE_string(
    "cuts", None, "Cuts to train each rule under, semicolons between: 3;2,3,4. Default: those of the config."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds, from the config's seed on.", lower_bound=1)
_BATCH_SEEDS = flags.DEFINE_bool(
    "batch_seeds",
    None,
    "Train the seeds of a rule together, by vmap. Default: where an accelerator's memory allows.",
)
_EQUAL_FLOPS = flags.DEFINE_string(
    "equal_flops", None, "A rule, as in --rules: every rule that has a width gets the one that takes its FLOPs."
)
_COLUMNS = flags.DEFINE_list(
    "columns",
    ["blocks", "last", "memory", "time", "mib"],
    f"Columns of the table that is printed, in this order: {', '.join(COLUMNS)}; or all. The file has all of them.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs, the table and the picture go.")


def costs(experiments: Mapping[str, Experiment], path: Path) -> dict[str, Cost]:
    """The cost of each without the data set, measured in a fresh process; those in ``path`` are known."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, experiment in experiments.items():
        what = _what(experiment)
        if known.get(name, {}).get("of") == what:
            continue
        print(f"measuring {name}", flush=True)
        known[name] = {"of": what, "cost": measure_alone(experiment)._asdict()}
        write_json(path, known)
    found = {name: Cost(**known[name]["cost"]) for name in experiments}
    data = {name: resident_bytes(experiment, experiment.abstract()[1]) for name, experiment in experiments.items()}
    return {name: cost._replace(total=cost.total - data[name]) for name, cost in found.items()}


def relative_times(experiments: Mapping[str, Experiment], path: Path) -> dict[str, float]:
    """Seconds per example ÷ backprop's, measured by turns; read from ``path`` if all are there."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    what = {name: _what(experiment) for name, experiment in experiments.items()}
    if not what.items() <= known.get("of", {}).items():
        print("measuring speeds by turns", flush=True)
        known = {"of": what, "speeds": speeds(experiments)}
        write_json(path, known)
    return {name: known["speeds"]["backprop"] / known["speeds"][name] for name in experiments}


def _what(experiment: Experiment) -> str:
    """What a measurement was made of: the config, and the software and device that ran it."""
    return json.dumps([experiment.config.to_dict(), environment(), Cost._fields], sort_keys=True)


def fits(cost: Cost, seeds: int) -> bool:
    """Whether a step of all seeds should fit; never on a CPU, where it is slower than one after another."""
    return seeds * cost.temporaries < 0.7 * (memory_of("") or 0)


def runs_of(experiment: Experiment, workdir: Path, seeds: int, *, together: bool) -> dict[Path, Experiment]:
    """The runs of one rule, by their directories."""
    first = experiment.config.seed
    if together:
        return {workdir / f"seeds_{first}_to_{first + seeds - 1}": rebuilt(experiment, seeds=seeds)}
    return {workdir / f"seed_{seed}": experiment.at_seed(seed) for seed in range(first, first + seeds)}


def flops_of(config: ConfigDict, target: str, dataset: Input) -> float:
    """Operations per example under the rule ``target``, which stands alone."""
    rule = parse_call(target, "equal_flops", config.rule)
    return lowered_flops(settled(changed(config, rule=rule), dataset=dataset))


def chosen_columns(names: Sequence[str]) -> list[str]:
    """Those of the printed table, each known; ``all`` alone is every one."""
    if not names:
        raise UserError(f"--columns names none: give some of {','.join(COLUMNS)}, or all")
    return list(COLUMNS) if list(names) == ["all"] else [one_of("column", name, tuple(COLUMNS)) for name in names]


def main() -> int:
    """Measures, trains, then writes the table and the picture."""
    config = _CONFIG()
    if config.seeds != 1:
        raise UserError("give the number of seeds by --seeds, not by --config.seeds")
    if "auto:" in (given := _CUTS.value or config.cuts) and (_EQUAL_FLOPS.value or _BATCH_SEEDS.value):
        raise UserError(
            f"cuts {given}: auto is for one seed at a time, of rules as they are: leave out "
            "--equal_flops and --batch_seeds, or give the cuts"
        )
    if _CUTS.value and _EQUAL_FLOPS.value:
        raise UserError("--equal_flops is for one set of cuts: leave out --cuts, and give --config.cuts")
    columns = chosen_columns(_COLUMNS.value)
    workdir = required_path(_WORKDIR, "a directory for the run's files")
    specs = parse_calls(_RULES.value, "rules", config.rule)
    configs = combinations(config, specs, _CUTS.value)
    where = {name: workdir / as_directory(name) for name in configs}
    if len(set(where.values())) < len(where):
        raise UserError(f"--rules={_RULES.value}: two of them would have the same directory; write one otherwise")
    # What is wrong with any of them is said before the first one is measured or trains.
    experiments = settled_by(configs, over_cuts=_CUTS.value is not None)
    chosen = tuple(experiments)
    if "backprop" not in chosen:  # what speeds are relative to; it has no cuts to settle, and need not fit
        some = next(iter(experiments.values()))
        experiments["backprop"] = build(changed(config, rule={"name": "backprop"}, cuts="all"), some.dataset)
    if _EQUAL_FLOPS.value:
        flops = flops_of(config, _EQUAL_FLOPS.value, experiments["backprop"].dataset)
        experiments = {name: widened(experiment, flops) for name, experiment in experiments.items()}
    together = _SEEDS.value > 1 and bool(_BATCH_SEEDS.value)
    for name in chosen:
        for run_dir, experiment in runs_of(experiments[name], where[name], _SEEDS.value, together=together).items():
            check(run_dir, experiment.config)
    directory(workdir)
    cost_of = costs(experiments, workdir / "costs.json")
    time_of = relative_times(experiments, workdir / "speeds.json")
    rows: dict[str, Row] = {}
    for name in chosen:
        print(f"\n{name}: {experiments[name].config.rule.to_dict()}", flush=True)
        together = _SEEDS.value > 1 and (fits(cost_of[name], _SEEDS.value) if _BATCH_SEEDS.value is None else together)
        results = []
        for run_dir, experiment in runs_of(experiments[name], where[name], _SEEDS.value, together=together).items():
            results.append(train_and_evaluate(experiment, run_dir))
            if stopped := results[-1].stopped_by:
                return 128 + stopped
        rows[name] = summarise(results, cost_of[name], cost_of["backprop"], time_of[name])
    (workdir / "table.md").write_text(f"{table(rows)}\n\n{sentence(rows)}\n", encoding="utf-8")
    picture(rows, workdir / "comparison.png")
    seeds = f"{_SEEDS.value} seed{'s' * (_SEEDS.value > 1)}"
    said = metrics_of(experiments["backprop"])
    print(f"\n{said.name.capitalize()} on {config.dataset}, {config.model.name}, {seeds}:\n\n{table(rows, columns)}\n")
    print(f"{sentence(rows)}\n")
    print(f"all columns: {workdir / 'table.md'}   picture: {workdir / 'comparison.png'}")
    return 0


if __name__ == "__main__":
    run(main)
