"""Rules side by side: a table and a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from experiments.drawing.tables import aligned, spread
from experiments.training.results import Results, exit_errors
from jaxlocal.executors import MIB, Cost


class Row(NamedTuple):
    """A rule, over its seeds.

    Attributes:
      errors: percent of the test split wrong at the last exit, for each seed.
      best: the exit of least mean error, and that error.
      about: cuts and parameter counts.
      cost: of a step.
      speed: examples per second, relative to backprop's.
      steps: at which the test split was evaluated.
      curves: error at the last exit at each of them, ``[seeds, evaluations]``, percent.
    """

    errors: Sequence[float]
    best: tuple[int, float]
    about: Mapping[str, Any]
    cost: Cost
    speed: float
    steps: Sequence[int]
    curves: np.ndarray


def summarise(runs: Sequence[Results], cost: Cost, speed: float) -> Row:
    """One row of the table."""
    seeds = [exits for run in runs for exits in run.seeds]
    means = np.mean([exit_errors(exits) for exits in seeds], axis=0)
    best = int(np.nanargmin(means))
    lines = [line for run in runs for line in run.history if line["split"] == "test"]
    steps = sorted({line["step"] for line in lines})
    curves = [[_error(line) for line in lines if line["step"] == step] for step in steps]
    return Row(
        errors=[100 * (1 - exits[-1]["accuracy"]) for exits in seeds],
        best=(best + 1, float(means[best])),
        about=runs[0].about,
        cost=cost,
        speed=speed,
        steps=steps,
        curves=np.array(curves).T,
    )


def _error(line: Mapping[str, Any]) -> float:
    accuracy = line["accuracy"][-1]
    return math.nan if accuracy is None else 100 * (1 - accuracy)


def table(rows: Mapping[str, Row]) -> str:
    """Everything about each rule, as a Markdown table."""
    header = (
        "rule",
        "blocks",
        "last exit, error %",
        "best exit, error %",
        "parameters",
        "in heads",
        "MFLOP / example",
        "temporaries MiB",
        "measured peak MiB",
        "img/s ÷ backprop's",
    )
    cells: list[tuple[str, ...]] = [header]
    for name, row in rows.items():
        parameters = [sum(block[part] for block in row.about["parameters"]) for part in ("network", "head")]
        cells.append(
            (
                name,
                str(len(row.about["parameters"])),
                f"**{spread(row.errors)}**",
                f"{row.best[1]:.2f} (exit {row.best[0]})",
                *(f"{n:,}" for n in parameters),
                f"{row.cost.flops / 1e6:,.1f}",
                f"{row.cost.temporaries / MIB:,.1f}",
                "-" if row.cost.peak is None else f"{row.cost.peak / MIB:,.1f}",
                f"{row.speed:.2f}",
            )
        )
    return aligned(cells)


def picture(rows: Mapping[str, Row], path: Path) -> None:
    """Two panels: test error against the memory of a step; test error over the steps, a band over the seeds."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    trade, curves = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab20"]
    for i, (name, row) in enumerate(rows.items()):
        memory, error = row.cost.temporaries / MIB, float(np.mean(row.errors))
        deviation = float(np.std(row.errors, ddof=1)) if len(row.errors) > 1 else 0.0
        trade.errorbar(memory, error, deviation, fmt="o", color=colours(i), capsize=3)
        trade.annotate(f" {name}", (memory, error), fontsize=8)
        mean = np.mean(row.curves, axis=0)
        curves.plot(row.steps, mean, color=colours(i), marker=".", label=name)
        curves.fill_between(row.steps, row.curves.min(axis=0), row.curves.max(axis=0), color=colours(i), alpha=0.15)
    trade.set_xlabel("temporaries of the compiled step (MiB)")
    trade.set_ylabel("test error at the last exit (%)")
    curves.set_xlabel("step")
    curves.set_ylabel("test error at the last exit (%), mean and range over seeds")
    curves.set_yscale("log")
    for axis in (curves.yaxis.set_major_formatter, curves.yaxis.set_minor_formatter):
        axis(ScalarFormatter())
    trade.margins(x=0.12)
    curves.legend(fontsize=8, frameon=False)
    for ax in (trade, curves):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
