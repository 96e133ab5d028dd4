"""What a run came to, and several of a rule; the table that rules stand side by side in."""

import math
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.cost import MIB, Cost
from experiments.record import Blocks, tested


class Results(NamedTuple):
    """What a run came to. A notebook shows it as a table of its exits.

    Attributes:
      workdir: where its files are.
      history: the lines of ``metrics.jsonl``.
      about: cuts and parameter counts, as in ``config.json``.
      seeds: for each seed, the metrics of each exit on the test split; empty if stopped
        before any evaluation.
      stopped_by: the signal that ended the run early; None if it ran to its end.
    """

    workdir: Path
    history: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]
    seeds: Sequence[Blocks]
    stopped_by: signal.Signals | None

    def __repr__(self) -> str:
        """The table; the history would fill pages."""
        errors = np.array([exit_errors(exits) for exits in self.seeds])  # [seeds, exits]
        rows = [("exit", "test error %"), *((str(i + 1), spread(exit)) for i, exit in enumerate(errors.T))]
        ended = f"; stopped by {self.stopped_by.name}" if self.stopped_by else ""
        return f"{aligned(rows)}\n\n{size_of(self.about)}{ended}"

    def _repr_markdown_(self) -> str:
        return repr(self)

    def plot(self) -> Figure:
        """Test error at every exit over the steps of training; a notebook under ``%matplotlib inline`` shows it."""
        from experiments import pictures  # it draws what is defined here

        return pictures.exits(*errors_over_time(self.history))


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


def exit_errors(blocks: Sequence[Mapping[str, float]]) -> list[float]:
    """Error in percent at every exit, first to last; NaN where an exit predicts no classes."""
    accuracies = []
    for block in blocks:
        # Under deep supervision one block has all exits, each a term of its loss.
        inner = [name for name in block if re.fullmatch(r"exit_\d+", name)]
        accuracies += [block.get(f"exit_{i + 1}/accuracy", math.nan) for i in range(len(inner))]
        accuracies.append(block.get("accuracy", math.nan))
    return [100 * (1 - x) for x in accuracies]


def errors_over_time(history: Sequence[Mapping[str, Any]]) -> tuple[list[int], np.ndarray]:
    """When the test split was evaluated, and the error at every exit, mean over seeds: ``[steps, exits]``, percent."""
    steps = sorted({line["step"] for line in history if line["split"] == "test"})
    means = [np.mean([exit_errors(exits) for exits in tested(history, step)], axis=0) for step in steps]
    return steps, np.array(means)


def errors_by_block(errors: Sequence[float], num_blocks: int) -> list[str]:
    """The errors of :func:`exit_errors` for a table of blocks; one block may have several exits."""
    shown = [f"{error:.2f}" if math.isfinite(error) else "-" for error in errors]
    return shown if len(shown) == num_blocks else [", ".join(shown)]


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


def size_of(about: Mapping[str, Any]) -> str:
    """Units, blocks and parameters, in words."""
    units, heads = (sum(block[part] for block in about["parameters"]) for part in ("network", "head"))
    blocks = f"{len(about['parameters'])} blocks (cuts {about['cuts']})"
    return f"{about['units']} units in {blocks}, {units:,} parameters, {heads:,} in heads"


def spread(errors: Sequence[float]) -> str:
    """Mean and sample standard deviation; a dash if there are no numbers."""
    if np.any(np.isnan(errors)):
        return "-"
    mean = f"{np.mean(errors):.2f}"
    return f"{mean} ± {np.std(errors, ddof=1):.2f}" if len(errors) > 1 else mean


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


def side_by_side(results: Mapping[str, Results]) -> str:
    """What runs came to, by name, as a Markdown table: exits and what heads hold, without what was not measured."""
    rows = [("rule", "blocks", "in heads", "first exit, error %", "best exit, error %", "last exit, error %")]
    for name, result in results.items():
        means = np.mean([exit_errors(exits) for exits in result.seeds], axis=0)
        best = int(np.nanargmin(means))
        heads = sum(block["head"] for block in result.about["parameters"])
        errors = (f"{means[0]:.2f}", f"{means[best]:.2f} (exit {best + 1})", f"{means[-1]:.2f}")
        rows.append((name, str(len(result.about["parameters"])), f"{heads:,}", *errors))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    ruler = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([lines[0], ruler, *lines[1:]])
