r"""Trains every row of a suite, tasks x rules x seeds, and makes one page of it.

.. code-block:: shell

    python -m experiments.benchmark --suite=cpu --workdir=/tmp/benchmark
    python -m experiments.benchmark --suite=cpu --only=gpt4 --rules='mine(depth=2)@2,3,4' --workdir=/tmp/benchmark

A suite is a file of ``experiments/suites``, or one of your own. Runs are made one after another, a seed of everything
first; each is a line of ``runs.jsonl`` as it ends. Killed at any point, the same command goes on; given again beside
itself, it takes runs that the other has not begun. ``benchmark.md`` has the tables, and there is a picture of each
task. ``--rules`` adds rows to each task that is chosen: rules as calls, with cuts behind an ``@``, semicolons between.
A run is in ``WORKDIR/TASK/ROW/seed_N``, where all but letters, digits, ``.``, ``=`` and ``-`` is ``_``, and prints
into ``train.log`` there.
"""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.app.environment import environment
from experiments.app.errors import UserError
from experiments.app.files import directory, read_lines, replace_text, saving
from experiments.app.program import required, run
from experiments.cost.compiled import measure
from experiments.cost.timed import turns
from experiments.pages.benchmark import Line, headline, page, pictures
from experiments.pages.benchmark import metrics_of as metrics_of_line
from experiments.recipe.build import build
from experiments.recipe.experiment import Experiment
from experiments.recipe.suite import Row, Suite, Task, chosen, read, recipe
from experiments.training.divergence import DivergedError
from experiments.training.loop import train_and_evaluate
from experiments.training.metrics import exits_of, metrics_of
from experiments.training.results import Results
from experiments.training.workdir import InUseError, differing, holds_run

_SUITE = flags.DEFINE_string("suite", None, "The suite: cpu, gpu, or a file.toml of one's own.")
_ONLY = flags.DEFINE_list("only", [], "Tasks of it, by name; all by default.")
_RULES = flags.DEFINE_string("rules", "", "Rows to add to each task, as calls: 'mine(depth=2)@2,4;mine'.")
_SEEDS = flags.DEFINE_integer("seeds", None, "How many seeds of a row at most.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs, their lines and the page go.")

_FIELDS = ("task", "row", "seed", "config", "exits")
Key = tuple[str, str, int]  # task, row, seed


def lines_of(path: Path, suite: Suite) -> dict[Key, Line]:
    """What is known of a suite's runs, the newest line of each; those of another recipe do not count."""
    known: dict[Key, Line] = {(line["task"], line["row"], line["seed"]): line for line in read_lines(path, _FIELDS)}
    found = {}
    for task, row, n in suite.runs():
        config = recipe(task, row, n)
        line = known.get((task.name, row.name, config.seed))
        if line and not differing(line["config"], config):
            found[task.name, row.name, config.seed] = line
    return found


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
            dataset = dataset or experiment.dataset
            found[task.name, row.name] = experiment
    return found


def costs(experiment: Experiment, base: Experiment) -> dict[str, Any]:
    """What a step takes, and its time relative to that of another's, by turns."""
    of = measure(experiment)
    took = turns({"base": base, "row": experiment}, rounds=5) if experiment is not base else {"base": [1], "row": [1]}
    return {
        "flops": of.cost.flops,
        "temporaries": of.cost.temporaries,
        "total": of.cost.total - of.data,
        "time": float(np.median(np.divide(took["row"], took["base"]))),
    }


def trained(task: Task, row: Row, experiment: Experiment, where: Path, cost: Mapping[str, Any]) -> Line | Results:
    """Trains a run, and says what came of it; what is left of it if a signal stopped it.

    Raises:
      InUseError: if another process is at it.
    """
    resumed, began, failed, results = holds_run(where), time.perf_counter(), "", None
    try:
        with _printing_into(directory(where) / "train.log"):
            results = train_and_evaluate(experiment, where)
    except DivergedError as error:
        failed = str(error)
    if results and results.stopped_by:
        return results
    about, said = experiment.describe(experiment.init()), metrics_of(experiment)
    return {
        "task": task.name,
        "row": row.name,
        "seed": experiment.config.seed,
        "exits": [_plain(exit) for exit in exits_of(results.seeds[0])] if results else [],
        "failed": failed,
        "unit": said.headline.title.partition(" per ")[2].partition(",")[0],
        "smoothed": experiment.config.label_smoothing > 0,
        "cuts": about["cuts"],
        "parameters": about["parameters"],
        **cost,
        "steps": experiment.num_steps,
        "seconds": None if resumed else time.perf_counter() - began,
        "environment": environment(),
        "config": {name: x for name, x in experiment.config.to_dict().items() if name != "evidence"},
    }


def _plain(exit: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(x) if np.isfinite(x) else None for name, x in exit.items()}


@contextlib.contextmanager
def _printing_into(path: Path) -> Iterator[None]:
    with saving(path), path.open("a") as file, contextlib.redirect_stdout(file):
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


def main() -> int:
    """Trains what has not been, and writes the page."""
    added = list(filter(None, _RULES.value.split(";")))
    suite = chosen(read(required(_SUITE, "cpu, gpu or a file")), _ONLY.value, _SEEDS.value, added)
    workdir = directory(Path(required(_WORKDIR, "a directory for the runs")))
    path = workdir / "runs.jsonl"
    experiments = built(suite, [text.strip() for text in added])
    busy: set[Key] = set()
    while todo := _todo(suite, experiments, lines_of(path, suite), busy):
        known = lines_of(path, suite)
        (task, row, key) = todo[0]
        print(
            f"[{len(known) + 1}/{len(known) + len(todo)}] {task.name}: {row.name}, seed {key[2]}; "
            f"ETA {to_go(known, [key for *_, key in todo])}",
            flush=True,
        )
        experiment = experiments[key[:2]]
        same = [line for other, line in known.items() if other[:2] == key[:2] and line["environment"] == environment()]
        where = workdir / task.name / re.sub(r"[^\w.=-]+", "_", row.name).strip("_") / f"seed_{key[2]}"
        try:
            base = experiments[task.name, task.rows[0].name]
            names = ("flops", "temporaries", "total", "time")
            cost = {name: same[0][name] for name in names} if same else costs(experiment, base)
            found = trained(task, row, experiment.at_seed(key[2]), where, cost)
        except InUseError:
            busy.add(key)
            continue
        if isinstance(found, Results):
            assert found.stopped_by
            print(f"stopped at {where}; the same command goes on from there", flush=True)
            return 128 + found.stopped_by
        with saving(path), path.open("a") as file:
            file.write(json.dumps(found) + "\n")
        said = metrics_of_line(found)
        print(f"  {found['failed'] or f'{said.headline.said(headline(found)[-1])} {said.headline.title}'}", flush=True)
        _write(suite, path, workdir)
    text = _write(suite, path, workdir)
    drawn = pictures(suite, list(lines_of(path, suite).values()), workdir)
    print(f"\n{text}\npage: {workdir / 'benchmark.md'}   pictures: {', '.join(map(str, drawn)) or 'none'}")
    if busy:
        print(f"{len(busy)} runs are another process's", file=sys.stderr)
    return 0


def _todo(
    suite: Suite, experiments: Mapping[tuple[str, str], Experiment], known: Mapping[Key, Line], busy: set[Key]
) -> list[tuple[Task, Row, Key]]:
    """Runs that are neither known nor another process's, in the order of the suite."""
    rows = (
        (task, row, (task.name, row.name), n) for task, row, n in suite.runs() if (task.name, row.name) in experiments
    )
    runs = [(task, row, (*names, experiments[names].config.seed + n)) for task, row, names, n in rows]
    return [(task, row, key) for task, row, key in runs if key not in known and key not in busy]


def _write(suite: Suite, path: Path, workdir: Path) -> str:
    text = page(
        suite,
        list(lines_of(path, suite).values()),
        f"python -m experiments.benchmark --suite={_SUITE.value} --workdir=DIR",
    )
    with saving(workdir / "benchmark.md"):
        replace_text(workdir / "benchmark.md", text)
    return text


if __name__ == "__main__":
    run(main)
