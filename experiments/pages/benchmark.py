"""What a benchmark found: a page of tables, and a picture of each task."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.drawing.tables import aligned, spread
from experiments.drawing.trades import Trade, trades
from experiments.recipe.suite import Row, Suite, Task, command
from experiments.training.metrics import IMAGES, Metrics, of_text
from experiments.training.results import best_exit
from jaxlocal.executors import MIB

Line = Mapping[str, Any]  # of a run


class Summary(NamedTuple):
    """A row over its seeds.

    Attributes:
      lines: of the runs that ended.
      exits: the headline number at every exit, ``[seeds, exits]``.
      failed: why a run did not end, if one did not.
    """

    lines: Sequence[Line]
    exits: np.ndarray
    failed: str

    @property
    def last(self) -> np.ndarray:
        """The headline number at the last exit, ``[seeds]``."""
        return self.exits[:, -1]


def metrics_of(line: Line) -> Metrics:
    """What is said of a run's task."""
    return of_text(line["unit"], smoothed=line["smoothed"]) if line["unit"] else IMAGES


def summaries(task: Task, lines: Sequence[Line]) -> dict[str, Summary]:
    """The rows of a task that have any runs, by name."""
    found = {}
    for row in task.rows:
        runs = [line for line in lines if (line["task"], line["row"]) == (task.name, row.name)]
        ended = [line for line in runs if not line["failed"]]
        if runs:
            exits = [[math.nan if x is None else x for x in headline(line)] for line in ended]
            failed = next((line["failed"] for line in runs if line["failed"]), "")
            found[row.name] = Summary(ended, np.array(exits, float), failed)
    return found


def headline(line: Line) -> Sequence[float | None]:
    """The headline number at every exit of a run."""
    exits = [{name: math.nan if x is None else x for name, x in exit.items()} for exit in line["exits"]]
    return metrics_of(line).headline.at(exits)


def page(suite: Suite, lines: Sequence[Line], how: str) -> str:
    """The page, in Markdown.

    Args:
      suite: whose tasks and rows stand in it.
      lines: one of each run.
      how: the command that makes it.
    """
    texts = [f"# {suite.title}", "", f"```\n{how}\n```", ""]
    codes: dict[str, set[str]] = {}
    for line in lines:
        codes.setdefault(_where(line), set()).add(line["environment"]["code"])
    texts += [f"{where}, code {', '.join(sorted(of))}." for where, of in sorted(codes.items())]
    for task in suite.tasks:
        if found := summaries(task, lines):
            texts += ["", f"## {task.title}", "", _table(task, found), "", *_commands(task, found)]
            if _drawn(task, found):
                texts += ["", f"![Error against memory and FLOPs: {task.title}]({_picture(task)})"]
    texts += ["", _NOTE, ""]
    return "\n".join(texts)


_NOTE = (
    "Mean and sample deviation over seeds. *Memory* is the highest point of a step by the compiler's analysis, the "
    "data set apart; *time* is a step's, by turns with the first row's while the suite ran; the rate is "
    "the first row's divided by it. ÷ is relative to the first row. *Hours* are those of a run, whatever else the "
    "machine did."
)


def _table(task: Task, found: Mapping[str, Summary]) -> str:
    some = next(line for of in found.values() for line in (*of.lines, None))
    if some is None:
        return "No run has ended."
    said = metrics_of(some)
    base = next((of.lines[0] for name, of in found.items() if name == task.rows[0].name and of.lines), None)
    titles = ("rule", "blocks", "cuts", "seeds", f"last exit, {said.headline.title}", "published", "best exit")
    costs = ("MFLOP / example", "÷", "memory MiB", "÷", "time ÷", said.rate, "hours")
    rows: list[Sequence[str]] = [(*titles, *costs, "")]
    for row in task.rows:
        of = found.get(row.name)
        if of is None:
            continue
        note = "; ".join(filter(None, (row.note, of.failed)))
        if not of.lines:
            rows.append((_shown(row), *["-"] * 4, row.published or "-", *["-"] * 8, note))
            continue
        line = of.lines[0]
        cells = (
            _shown(row),
            str(len(line["cuts"]) + 1),
            ",".join(map(str, line["cuts"])) or (f"({row.cuts})" if row.cuts else "-"),  # exits of one block
            str(len(of.lines)),
            spread(of.last, said.headline.form),
            row.published or "-",
            best_exit(said.headline, np.mean(of.exits, axis=0)),
        )
        took = [x["seconds"] for x in of.lines if x["seconds"]]  # runs that went on have none
        rows.append((*cells, *_costs(line, base), f"{np.mean(took) / 3600:.2f}" if took else "-", note))
    return aligned(rows)


def _costs(line: Line, base: Line | None) -> tuple[str, ...]:
    """FLOPs and memory, both and the time relative to the first row's, and the rate."""
    flops, total = (f"{_relative(line, field):.2f}" for field in ("flops", "total"))
    time = rate = "-"
    if line["time"] is not None:
        time = f"{line['time']:.2f}"
        if base and base["rate"] and base["measured_in"]["device"] == line["measured_in"]["device"]:
            rate = f"{base['rate'] / line['time']:,.0f}"
    return f"{line['flops'] / 1e6:,.1f}", flops, f"{line['total'] / MIB:,.1f}", total, time, rate


def _relative(line: Line, field: str) -> float:
    """To the first row's, as both were measured together."""
    return float(line[field] / line["base"][field])


def _shown(row: Row) -> str:
    """The rule, and what else differs but the cuts, which have a column."""
    return ", ".join([row.rule, *(f"{name}={value}" for name, value in row.set.items())])


def _commands(task: Task, found: Mapping[str, Summary]) -> list[str]:
    rows = [row for row in task.rows if row.name in found]
    words = [f"{command(task, row)}" for row in rows]
    return [
        "<details><summary>Each by itself (seeds by --config.seed)</summary>",
        "",
        "```",
        *words,
        "```",
        "",
        "</details>",
    ]


def _where(line: Line) -> str:
    of = line["environment"]
    return f"{of['device']}, {of['host_cpus']} cores; Python {of['python']}, jax {of['jax']}"


def _picture(task: Task) -> str:
    return f"benchmark_{task.name}.svg"


def _drawn(task: Task, found: Mapping[str, Summary]) -> dict[str, Summary]:
    """The rows that a picture has; none if the first is not among them, or alone."""
    rows = {name: of for name, of in found.items() if of.lines and not np.isnan(of.last).any()}
    return rows if task.rows[0].name in rows and len(rows) > 1 else {}


def pictures(suite: Suite, lines: Sequence[Line], where: Path) -> list[Path]:
    """Error against memory and against FLOPs, of each task with several rules; the files that were written.

    Rows that change more than rule and cuts are left to the table.
    """
    written = []
    for task in suite.tasks:
        if not (found := _drawn(task, summaries(task, lines))):
            continue
        said = metrics_of(found[task.rows[0].name].lines[0])
        rows = {row.name: row for row in task.rows}
        points = [
            Trade(
                rows[name].rule,
                len(of.lines[0]["cuts"]) + 1,
                _relative(of.lines[0], "total"),
                _relative(of.lines[0], "flops"),
                float(np.mean(of.last)),
                float(np.std(of.last, ddof=1)) if len(of.last) > 1 else 0.0,
            )
            for name, of in found.items()
            if not rows[name].set
        ]
        written.append(where / _picture(task))
        trades(points, said.axis("at the last exit"), task.title, written[-1])
    return written
