"""Rules side by side: a table, a sentence under it, and a picture."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from experiments.drawing.style import INK, WIDTH, colour, is_remat, label_points, marker, styled, write
from experiments.drawing.tables import spread, titled
from experiments.training.metrics import Metrics
from experiments.training.results import Results, best_exit, of_seeds, tested
from jaxlocal.executors import MIB, Cost


class Row(NamedTuple):
    """A rule, over its seeds.

    Attributes:
      metrics: what is said of the task.
      exits: each of its numbers at every exit, ``[seeds, exits]``, in the order of ``metrics.columns``.
      about: cuts and parameter counts.
      cost: of a step; its total without the data set, whose size says nothing about the rule.
      memory: that total ÷ backprop's.
      time: of a step ÷ backprop's.
      steps: at which the test split was evaluated.
      curves: the headline number at the last exit at each of them, ``[seeds, evaluations]``.
    """

    metrics: Metrics
    exits: Sequence[np.ndarray]
    about: Mapping[str, Any]
    cost: Cost
    memory: float
    time: float
    steps: Sequence[int]
    curves: np.ndarray

    @property
    def last(self) -> np.ndarray:
        """The headline number at the last exit, ``[seeds]``."""
        return self.exits[0][:, -1]

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self.about["parameters"])


def summarise(runs: Sequence[Results], cost: Cost, backprop: Cost, time: float) -> Row:
    """One row of the table; ``time`` is that of a step ÷ backprop's."""
    metrics, seeds = runs[0].metrics, [exits for run in runs for exits in run.seeds]
    steps = sorted({line["step"] for run in runs for line in run.history if line["split"] == "test"})
    of_steps = ([exits for run in runs for exits in tested(run.history, step)] for step in steps)
    return Row(
        metrics=metrics,
        exits=[of_seeds(metric, seeds) for metric in metrics.columns],
        about=runs[0].about,
        cost=cost,
        memory=cost.total / backprop.total,
        time=time,
        steps=steps,
        curves=np.array([of_seeds(metrics.headline, exits)[:, -1] for exits in of_steps]).T,
    )


def _last(row: Row) -> dict[str, str]:
    headline = row.metrics.headline
    return {f"last exit, {headline.title}": f"**{spread(row.last, headline.form)}**"}


def _beside(row: Row) -> dict[str, str]:
    others = zip(row.metrics.others[:1], row.exits[1:], strict=False)
    return {f"last exit, {metric.title}": spread(of[:, -1], metric.form) for metric, of in others}


def _best(row: Row) -> dict[str, str]:
    headline = row.metrics.headline
    return {f"best exit, {headline.title}": best_exit(headline, np.mean(row.exits[0], axis=0))}


def _parameters(row: Row, part: str) -> str:
    return f"{sum(block[part] for block in row.about['parameters']):,}"


# By the names that they are chosen by: cells by their titles. Of images there is no number beside the error.
COLUMNS: Mapping[str, Callable[[Row], Mapping[str, str]]] = {
    "blocks": lambda row: {"blocks": str(row.blocks)},
    "last": _last,
    "beside": _beside,
    "best": _best,
    "memory": lambda row: {"memory ÷ backprop's": f"{row.memory:.2f}"},
    "time": lambda row: {"time ÷ backprop's": f"{row.time:.2f}"},
    "mib": lambda row: {"memory MiB": f"{row.cost.total / MIB:,.1f}"},
    "temporaries": lambda row: {"temporaries MiB": f"{row.cost.temporaries / MIB:,.1f}"},
    "peak": lambda row: {"measured peak MiB": "-" if row.cost.peak is None else f"{row.cost.peak / MIB:,.1f}"},
    "flops": lambda row: {"MFLOP / example": f"{row.cost.flops / 1e6:,.1f}"},
    "parameters": lambda row: {"parameters": _parameters(row, "network")},
    "heads": lambda row: {"in heads": _parameters(row, "head")},
}


def table(rows: Mapping[str, Row], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """The columns of these names, after each rule's name, as a Markdown table; rows are of one task."""
    cells = ({name: of for column in columns for name, of in COLUMNS[column](row).items()} for row in rows.values())
    return titled([{"rule": name, **of} for name, of in zip(rows, cells, strict=True)])


def sentence(rows: Mapping[str, Row]) -> str:
    """What the table shows, of the local rule and of the other one that take least memory; and what it does not."""
    said = next(iter(rows.values())).metrics.headline
    others = {name: row for name, row in rows.items() if name != "backprop"}
    shown = []
    for isolated in (True, False):
        if kind := {name: row for name, row in others.items() if (row.blocks > 1) == isolated}:
            name, row = min(kind.items(), key=lambda item: item[1].memory)
            costs = f"{row.memory:.2f} of backprop's memory and {row.time:.2f} of its time"
            shown.append(f"{name} takes {costs} and ends at {spread(row.last, said.form)}")
    if "backprop" in rows:
        shown.append(f"backprop ends at {spread(rows['backprop'].last, said.form)}")
    seeds = len(next(iter(rows.values())).last)
    return (
        f"Shown, in {said.title}: {'; '.join(shown)}. Not shown: which rule learns best, as this is one network at one "
        f"batch size on one device, with {seeds} seed{'s' * (seeds > 1)}."
    )


@styled
def picture(rows: Mapping[str, Row], path: Path) -> None:
    """Two panels: the headline number against the memory of a step; over the steps, with a band over the seeds."""
    said = next(iter(rows.values())).metrics
    figure = Figure(figsize=(WIDTH, 8), layout="constrained")
    trade, curves = figure.subplots(2, 1)
    at = []
    for name, row in rows.items():
        memory, height = row.memory, float(np.mean(row.last))
        deviation = float(np.std(row.last, ddof=1)) if len(row.last) > 1 else 0.0
        trade.errorbar(memory, height, deviation, fmt=marker(name), color=colour(name), capsize=2, elinewidth=0.8)
        at.append((name, memory, height, colour(name)))
        mean = np.mean(row.curves, axis=0)
        dashes = "--" if is_remat(name) else "-"
        curves.plot(row.steps, mean, dashes, color=colour(name), marker=".", label=name)
        curves.fill_between(row.steps, row.curves.min(axis=0), row.curves.max(axis=0), color=colour(name), alpha=0.15)
    trade.set(xlabel="memory of a step ÷ backprop's", ylabel=said.axis("at the last exit"))
    curves.set(xlabel="step", yscale="log" if said.log else "linear")
    curves.set_ylabel(fill(f"{said.axis('at the last exit')}, mean and range over seeds", 48))
    for axis in (curves.yaxis.set_major_formatter, curves.yaxis.set_minor_formatter):
        axis(ScalarFormatter())
    trade.axvline(1, color=INK, linewidth=0.9, zorder=1)
    trade.margins(x=0.15, y=0.12)
    curves.legend(fontsize=8, ncols=2)
    label_points(trade, at, [(x, y) for _, x, y, _ in at])
    write(figure, path)
