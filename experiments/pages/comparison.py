"""Rules side by side: a table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from experiments.drawing.style import WIDTH, colour, is_remat, label_points, marker, styled, write
from experiments.drawing.tables import aligned, spread
from experiments.training.metrics import Metrics
from experiments.training.results import Results, best_exit, of_seeds, tested
from jaxlocal.executors import MIB, Cost


class Row(NamedTuple):
    """A rule, over its seeds.

    Attributes:
      metrics: what is said of the task.
      exits: each of its numbers at every exit, ``[seeds, exits]``, in the order of ``metrics.columns``.
      about: cuts and parameter counts.
      cost: of a step.
      speed: examples per second, relative to backprop's.
      steps: at which the test split was evaluated.
      curves: the headline number at the last exit at each of them, ``[seeds, evaluations]``.
    """

    metrics: Metrics
    exits: Sequence[np.ndarray]
    about: Mapping[str, Any]
    cost: Cost
    speed: float
    steps: Sequence[int]
    curves: np.ndarray

    @property
    def last(self) -> np.ndarray:
        """The headline number at the last exit, ``[seeds]``."""
        return self.exits[0][:, -1]


def summarise(runs: Sequence[Results], cost: Cost, speed: float) -> Row:
    """One row of the table."""
    metrics, seeds = runs[0].metrics, [exits for run in runs for exits in run.seeds]
    steps = sorted({line["step"] for run in runs for line in run.history if line["split"] == "test"})
    of_steps = ([exits for run in runs for exits in tested(run.history, step)] for step in steps)
    return Row(
        metrics=metrics,
        exits=[of_seeds(metric, seeds) for metric in metrics.columns],
        about=runs[0].about,
        cost=cost,
        speed=speed,
        steps=steps,
        curves=np.array([of_seeds(metrics.headline, exits)[:, -1] for exits in of_steps]).T,
    )


def table(rows: Mapping[str, Row]) -> str:
    """Everything about each rule, as a Markdown table; rows are of one task."""
    said = next(iter(rows.values())).metrics
    beside = said.others[:1]
    header = (
        "rule",
        "blocks",
        *(f"last exit, {metric.title}" for metric in (said.headline, *beside)),
        f"best exit, {said.headline.title}",
        "parameters",
        "in heads",
        "MFLOP / example",
        "temporaries MiB",
        "measured peak MiB",
        f"{said.rate} ÷ backprop's",
    )
    cells: list[tuple[str, ...]] = [header]
    for name, row in rows.items():
        parameters = [sum(block[part] for block in row.about["parameters"]) for part in ("network", "head")]
        others = zip(beside, row.exits[1:], strict=False)
        cells.append(
            (
                name,
                str(len(row.about["parameters"])),
                f"**{spread(row.last, said.headline.form)}**",
                *(spread(of[:, -1], metric.form) for metric, of in others),
                best_exit(said.headline, np.mean(row.exits[0], axis=0)),
                *(f"{n:,}" for n in parameters),
                f"{row.cost.flops / 1e6:,.1f}",
                f"{row.cost.temporaries / MIB:,.1f}",
                "-" if row.cost.peak is None else f"{row.cost.peak / MIB:,.1f}",
                f"{row.speed:.2f}",
            )
        )
    return aligned(cells)


@styled
def picture(rows: Mapping[str, Row], path: Path) -> None:
    """Two panels: the headline number against the memory of a step; over the steps, with a band over the seeds."""
    said = next(iter(rows.values())).metrics
    figure = Figure(figsize=(WIDTH, 8), layout="constrained")
    trade, curves = figure.subplots(2, 1)
    at = []
    for name, row in rows.items():
        memory, height = row.cost.total / MIB, float(np.mean(row.last))
        deviation = float(np.std(row.last, ddof=1)) if len(row.last) > 1 else 0.0
        trade.errorbar(memory, height, deviation, fmt=marker(name), color=colour(name), capsize=2, elinewidth=0.8)
        at.append((name, memory, height, colour(name)))
        mean = np.mean(row.curves, axis=0)
        dashes = "--" if is_remat(name) else "-"
        curves.plot(row.steps, mean, dashes, color=colour(name), marker=".", label=name)
        curves.fill_between(row.steps, row.curves.min(axis=0), row.curves.max(axis=0), color=colour(name), alpha=0.15)
    trade.set(xlabel="memory of a step, data set apart (MiB)", ylabel=said.axis("at the last exit"))
    curves.set(xlabel="step", yscale="log" if said.log else "linear")
    curves.set_ylabel(fill(f"{said.axis('at the last exit')}, mean and range over seeds", 48))
    for axis in (curves.yaxis.set_major_formatter, curves.yaxis.set_minor_formatter):
        axis(ScalarFormatter())
    trade.margins(x=0.15, y=0.12)
    curves.legend(fontsize=8, ncols=2)
    label_points(trade, at, [(x, y) for _, x, y, _ in at])
    write(figure, path)
