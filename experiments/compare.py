r"""Trains several rules under one recipe and several seeds, and puts them side by side.

.. code-block:: shell

    python -m experiments.compare --config=experiments/configs/auglocal_digits.py \
        --rules='auglocal,man(dgl),backprop' --seeds=3 --workdir=/tmp/compare

Rules are written as calls: ``dgl``, ``auglocal(depth=3)``, ``man(infopro(contrast=True))``.
The config's own rule keeps its parameters where it is mentioned by its bare name. What each
step costs is measured first, in a process of its own; then the speeds, by turns; then
every rule trains with every seed. The table goes to the terminal and to ``table.md``,
the picture to ``comparison.png``. Interrupted, it goes on where it was; finished runs
are kept, so that rules and seeds can be added later (seeds trained together are one run).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import cost
from experiments.build import Experiment, build, environment
from experiments.cli import UserError, config_flag, run
from experiments.cost import Cost
from experiments.pictures import comparison
from experiments.planning import settled
from experiments.record import write_json
from experiments.registry import parse_calls
from experiments.summary import Row, summarise, table
from experiments.training import train_and_evaluate
from experiments.workdir import check
from jaxlocal.data import Input


def with_rule(config: ConfigDict, spec: Mapping[str, Any]) -> ConfigDict:
    """The same recipe under another rule."""
    changed = config.copy_and_resolve_references()
    changed.rule = ConfigDict(spec)
    return changed


def costs(configs: Mapping[str, ConfigDict], path: Path) -> dict[str, Cost]:
    """The cost of each config, each measured in a fresh process; those in ``path`` are known."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, config in configs.items():
        what = _what(config)
        if known.get(name, {}).get("of") == what:
            continue
        print(f"measuring {name}", flush=True)
        measured = cost.measure_alone(config)
        known[name] = {"of": what, "cost": measured._asdict()}
        write_json(path, known)
    return {name: Cost(**known[name]["cost"]) for name in configs}


def relative_speeds(
    configs: Mapping[str, ConfigDict], experiments: Mapping[str, Experiment], path: Path
) -> dict[str, float]:
    """Examples per second relative to backprop, measured by turns; read from ``path`` if all are there."""
    known = json.loads(path.read_text()) if path.exists() else {}
    what = {name: _what(config) for name, config in configs.items()}
    if not what.items() <= known.get("of", {}).items():
        print("measuring speeds by turns", flush=True)
        known = {"of": what, "speeds": cost.speeds(experiments, next(iter(configs.values())))}
        write_json(path, known)
    return {name: known["speeds"][name] / known["speeds"]["backprop"] for name in experiments}


def _what(config: ConfigDict) -> str:
    """What a measurement was made of: the config, and the software and device that ran it."""
    return json.dumps([config.to_dict(), environment()], sort_keys=True)


def fits(cost: Cost, seeds: int) -> bool:
    """Whether a step of all seeds should fit; never on a CPU, where it is slower than one after another."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return seeds * cost.temporaries < 0.7 * stats.get("bytes_limit", 0)


def plan(config: ConfigDict, workdir: Path, seeds: int, *, together: bool) -> dict[Path, ConfigDict]:
    """The runs of one rule: their directories and configs."""
    runs = {}
    for i in range(1 if together else seeds):
        changed = config.copy_and_resolve_references()
        changed.seed, changed.seeds = config.seed + i, seeds if together else 1
        last = changed.seed + changed.seeds - 1
        runs[workdir / (f"seeds_{changed.seed}_to_{last}" if together else f"seed_{changed.seed}")] = changed
    return runs


def main(argv: Sequence[str]) -> int:
    """Measures, trains, then writes the table and the picture."""
    del argv
    config = _CONFIG()
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: a directory for the run's files")
    if config.seeds != 1:
        raise UserError("give the number of seeds by --seeds, not by --config.seeds")
    if config.cuts.startswith("auto:") and (_EQUAL_FLOPS.value or _BATCH_SEEDS.value):
        raise UserError(
            f"--config.cuts={config.cuts} is for one seed at a time, of rules as they are: leave out "
            "--equal_flops and --batch_seeds, or give the cuts"
        )
    workdir = Path(_WORKDIR.value)
    specs = parse_calls(_RULES.value, "rules", config.rule)
    chosen = tuple(specs)
    where = {name: workdir / re.sub(r"[^\w.=-]+", "_", name).strip("_") for name in chosen}
    if len(set(where.values())) < len(where):
        raise UserError(f"--rules={_RULES.value}: two of them would have the same directory; write one otherwise")
    specs.setdefault("backprop", {"name": "backprop"})  # what speeds are relative to
    # What is wrong with any of them is said before the first one is measured or trains.
    configs = {name: settled(with_rule(config, spec), say=print) for name, spec in specs.items() if name in chosen}
    if "backprop" not in chosen:  # it has no cuts to settle, and need not fit
        configs["backprop"] = with_rule(config, specs["backprop"])
        configs["backprop"].cuts = "all"
    dataset = build(configs["backprop"]).dataset
    experiments = {name: build(changed, dataset) for name, changed in configs.items()}
    if _EQUAL_FLOPS.value:
        configs = {
            name: with_rule(configs[name], spec)
            for name, spec in widened(config, configs, _EQUAL_FLOPS.value, dataset).items()
        }
        experiments = {name: build(changed, dataset) for name, changed in configs.items()}
    together = _SEEDS.value > 1 and bool(_BATCH_SEEDS.value)
    for name in chosen:
        for directory, changed in plan(configs[name], where[name], _SEEDS.value, together=together).items():
            check(directory, changed)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    cost_of = costs(configs, workdir / "costs.json")
    speed_of = relative_speeds(configs, experiments, workdir / "speeds.json")
    rows: dict[str, Row] = {}
    for name in chosen:
        print(f"\n{name}: {configs[name].rule.to_dict()}", flush=True)
        together = _SEEDS.value > 1 and (fits(cost_of[name], _SEEDS.value) if _BATCH_SEEDS.value is None else together)
        results = []
        for directory, changed in plan(configs[name], where[name], _SEEDS.value, together=together).items():
            experiment = build(changed, dataset) if together else experiments[name]
            results.append(train_and_evaluate(changed, directory, experiment))
            if stopped := results[-1].stopped_by:
                return 128 + stopped
        rows[name] = summarise(results, cost_of[name], speed_of[name])
    text = table(rows)
    (workdir / "table.md").write_text(text + "\n")
    comparison(rows, workdir / "comparison.png")
    seeds = f"{_SEEDS.value} seed{'s' * (_SEEDS.value > 1)}"
    print(f"\nTest error on {config.dataset}, {config.model.name}, {seeds}:\n\n{text}\n")
    print(f"table: {workdir / 'table.md'}   picture: {workdir / 'comparison.png'}")
    return 0


def widened(
    config: ConfigDict, configs: Mapping[str, ConfigDict], target: str, dataset: Input
) -> dict[str, Mapping[str, Any]]:
    """The rules of ``configs`` at the widths that take the FLOPs of the rule ``target``."""
    targets = parse_calls(target, "equal_flops", config.rule)
    if len(targets) != 1:
        raise UserError(f"--equal_flops={target}: give one rule")
    wanted = settled(with_rule(config, *targets.values()))
    flops = cost.lowered_flops(build(wanted, dataset), wanted)
    return {name: cost.widened(changed, flops, dataset) for name, changed in configs.items()}


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _CONFIG = config_flag("The recipe: a file of experiments/configs.")
    _RULES = flags.DEFINE_string("rules", "auglocal,backprop", "Rules to train, as calls: auglocal,man(dgl).")
    _SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds, from the config's seed on.", lower_bound=1)
    _BATCH_SEEDS = flags.DEFINE_bool(
        "batch_seeds",
        None,
        "Train the seeds of a rule together, by vmap. Default: where an accelerator's memory allows.",
    )
    _EQUAL_FLOPS = flags.DEFINE_string(
        "equal_flops", None, "A rule, as in --rules: every rule that has a width gets the one that takes its FLOPs."
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs, the table and the picture go.")
    run(main)
