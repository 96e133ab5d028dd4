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

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.app.environment import environment
from experiments.app.errors import BAD_INPUT, UserError
from experiments.app.files import as_directory, directory, replace_text, saving
from experiments.app.program import required, required_path, run
from experiments.pages.benchmark import headline, metrics_of, page, pictures
from experiments.recipe.experiment import Experiment
from experiments.recipe.suite import Row, Suite, Task, chosen, read, rows_of
from experiments.training.results import Results
from experiments.training.workdir import InUseError, check
from experiments.trials.runs import COSTS, Key, Line, add_line, built, costs, lines_of, to_go, trained

_SUITE = flags.DEFINE_string("suite", None, "The suite: cpu, gpu, or a file.toml of one's own.")
_ONLY = flags.DEFINE_list("only", [], "Tasks of it, by name; all by default.")
_RULES = flags.DEFINE_string("rules", "", "Rows to add to each task, as calls: 'mine(depth=2)@2,4;mine'.")
_SEEDS = flags.DEFINE_integer("seeds", None, "How many seeds of a row at most.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs, their lines and the page go.")


def main() -> int:
    """Trains what has not been, and writes the page."""
    added = rows_of(_RULES.value)
    suite = chosen(read(required(_SUITE, "cpu, gpu or a file")), _ONLY.value, _SEEDS.value, added)
    workdir = directory(required_path(_WORKDIR, "a directory for the runs"))
    path = workdir / "runs.jsonl"
    experiments = built(suite, [row.name for row in added])
    here = environment()
    measured: dict[tuple[str, str], Mapping[str, Any]] = {}
    left: dict[Key, str] = {}  # directories hold runs of another recipe
    busy: dict[Key, str] = {}  # another process is at them
    while todo := _todo(suite, experiments, known := lines_of(path, suite), left | busy):
        (task, row, key) = todo[0]
        print(
            f"[{len(known) + 1}/{len(known) + len(todo)}] {task.name}: {row.name}, seed {key[2]}; "
            f"ETA {to_go(known, [key for *_, key in todo])}",
            flush=True,
        )
        same = [line for other, line in known.items() if other[:2] == key[:2] and line["measured_in"] == here]
        where = workdir / task.name / as_directory(row.name) / f"seed_{key[2]}"
        experiment = experiments[key[:2]].at_seed(key[2])
        try:
            check(where, experiment.config)
        except UserError as error:
            left[key] = str(error)
            continue
        if key[:2] not in measured:
            known_cost = {name: same[0][name] for name in COSTS} if same else None
            measured[key[:2]] = known_cost or costs(experiments[key[:2]], experiments[task.name, task.rows[0].name])
        if key in lines_of(path, suite):  # by another process, meanwhile
            continue
        try:
            found = trained(task, row, experiment, where, measured[key[:2]])
        except InUseError as error:
            busy[key] = str(error)
            continue
        if isinstance(found, Results):
            assert found.stopped_by
            print(f"stopped at {where}; the same command goes on from there", flush=True)
            return 128 + found.stopped_by
        add_line(path, found)
        said = metrics_of(found)
        print(f"  {found['failed'] or f'{said.headline.said(headline(found)[-1])} {said.headline.title}'}", flush=True)
        _write(suite, lines_of(path, suite), workdir)
        jax.clear_caches()  # compiled programs take more than memory: the system limits their number
    known = lines_of(path, suite)
    text = _write(suite, known, workdir)
    drawn = pictures(suite, list(known.values()), workdir)
    print(f"\n{text}\npage: {workdir / 'benchmark.md'}   pictures: {', '.join(map(str, drawn)) or 'none'}")
    for reason in (*left.values(), *(busy[key] for key in busy if key not in known)):
        print(f"left out: {reason}", file=sys.stderr)
    return BAD_INPUT if left else 0


def _todo(
    suite: Suite, experiments: Mapping[tuple[str, str], Experiment], known: Mapping[Key, Line], left: Mapping[Key, str]
) -> list[tuple[Task, Row, Key]]:
    """Runs that are neither known nor left out, in the order of the suite."""
    rows = (
        (task, row, (task.name, row.name), n) for task, row, n in suite.runs() if (task.name, row.name) in experiments
    )
    runs = [(task, row, (*names, experiments[names].config.seed + n)) for task, row, names, n in rows]
    return [(task, row, key) for task, row, key in runs if key not in known and key not in left]


def _write(suite: Suite, known: Mapping[Key, Line], workdir: Path) -> str:
    how = f"python -m experiments.benchmark --suite={_SUITE.value} --workdir=DIR"
    text = page(suite, list(known.values()), how)
    with saving(workdir / "benchmark.md"):
        replace_text(workdir / "benchmark.md", text)
    return text


if __name__ == "__main__":
    run(main)
