"""Runs of a suite: which are known, what one takes, and what it came to."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.app.environment import environment
from experiments.app.errors import UserError
from experiments.app.files import as_json, directory, saving
from experiments.cost.compiled import measure
from experiments.cost.timed import turns
from experiments.recipe.build import build
from experiments.recipe.experiment import Experiment
from experiments.recipe.suite import Row, Suite, Task, recipe
from experiments.training.divergence import DivergedError
from experiments.training.loop import train_and_evaluate
from experiments.training.metrics import counted, exits_of, metrics_of
from experiments.training.results import Results
from experiments.training.workdir import differing, holds_run, load_record
from experiments.trials.frontier import OutOfMemoryError, memory_suffices

Line = Mapping[str, Any]  # of a run
COSTS = ("flops", "temporaries", "total", "base", "time", "rate", "measured_in")
_FIELDS = {"task", "row", "seed", "config", "exits", "failed", *COSTS}
_RUN_BY = ("executor", "stages", "data_parallel")  # change no result, but what a step takes
Key = tuple[str, str, int]  # task, row, seed


def lines_of(path: Path, suite: Suite) -> dict[Key, Line]:
    """What is known of a suite's runs, the newest line of each.

    Those of another recipe or an older form do not count, nor one that was cut short: its run is there, and told again.
    """
    known: dict[Key, list[Line]] = {}
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and line.keys() >= _FIELDS:
                known.setdefault((line["task"], line["row"], line["seed"]), []).append(line)
    found: dict[Key, Line] = {}
    for task, row, n in suite.runs():
        config = recipe(task, row, n)
        for line in known.get((task.name, row.name, config.seed), ()):
            same = all(line["config"].get(field) == config[field] for field in _RUN_BY)
            if same and not differing(line["config"], config):
                found[task.name, row.name, config.seed] = line
    return found


def add_line(path: Path, line: Line) -> None:
    """Appends a line; what was cut short before it ends where it is."""
    with saving(path), path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(as_json(line).encode() + b"\n")


def built(suite: Suite, added: Sequence[str]) -> dict[tuple[str, str], Experiment]:
    """Every row at its first seed, so what is wrong with any is said before the first one trains.

    Args:
      suite: whose rows they are.
      added: names of rows of one's own, which are left out of a task that cannot have them, with a line.

    Raises:
      UserError: if a row of the suite's own cannot be built.
    """
    found = {}
    for task in suite.tasks:
        dataset = None
        for row in task.rows:
            try:
                experiment = build(recipe(task, row, 0), None if row.set else dataset)
            except UserError as error:
                if row.name not in added:
                    raise UserError(f"task {task.name}, {row.name}: {error}") from error
                print(f"left out of {task.name}: {row.name}: {error}", flush=True)
                continue
            if not row.set:  # which may ask for other data
                dataset = experiment.dataset
            found[task.name, row.name] = experiment
    return found


def costs(experiment: Experiment, base: Experiment) -> dict[str, Any]:
    """What a step takes, and another's; its time relative to that one's, by turns, None where both do not fit."""
    of, beside = measure(experiment), measure(base)
    time = rate = None
    with contextlib.suppress(OutOfMemoryError), memory_suffices():
        took = turns({"base": base, "row": experiment}, rounds=5)
        time = 1.0 if experiment is base else float(np.median(np.divide(took["row"], took["base"])))
        rate = counted(experiment, experiment.config.batch_size) / float(np.median(took["row"]))
    return {
        "flops": of.cost.flops,
        "temporaries": of.cost.temporaries,
        "total": of.cost.total - of.data,
        "base": {"flops": beside.cost.flops, "total": beside.cost.total - beside.data},
        "time": time,
        "rate": rate,
        "measured_in": environment(),
    }


def trained(task: Task, row: Row, experiment: Experiment, where: Path, cost: Mapping[str, Any]) -> Line | Results:
    """Trains a run, and says what came of it; what is left of it if a signal stopped it.

    Raises:
      InUseError: if another process is at it.
    """
    resumed, began, failed, results = holds_run(where), time.perf_counter(), "", None
    try:
        with _printing_into(directory(where) / "train.log"), memory_suffices("the run"):
            results = train_and_evaluate(experiment, where)
    except (DivergedError, OutOfMemoryError) as error:
        failed = str(error)
    if results and results.stopped_by:
        return results
    about, said = experiment.describe(experiment.init()), metrics_of(experiment)
    return {
        "task": task.name,
        "row": row.name,
        "seed": experiment.config.seed,
        "exits": exits_of(results.seeds[0]) if results else [],
        "failed": failed,
        "unit": said.headline.title.partition(" per ")[2].partition(",")[0],
        "smoothed": experiment.config.label_smoothing > 0,
        "cuts": about["cuts"],
        "parameters": about["parameters"],
        **cost,
        "steps": experiment.num_steps,
        "seconds": None if resumed else time.perf_counter() - began,
        "environment": load_record(where)["environment"],  # that it began in
        "config": {name: x for name, x in experiment.config.to_dict().items() if name != "evidence"},
    }


@contextlib.contextmanager
def _printing_into(path: Path) -> Iterator[None]:
    with saving(path), path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def to_go(known: Mapping[Key, Line], todo: Sequence[Key]) -> str:
    """How long the runs that are left will take, from those of the same row, of the task, or of all that ended."""
    took = {key: line["seconds"] for key, line in known.items() if line["seconds"]}

    def like(key: Key, parts: int) -> list[float]:
        return [seconds for other, seconds in took.items() if other[:parts] == key[:parts]]

    if not took:
        return "not known yet"
    seconds = sum(float(np.mean(like(key, 2) or like(key, 1) or like(key, 0))) for key in todo)
    return f"{seconds / 3600:.1f} h"
