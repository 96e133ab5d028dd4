"""What a run came to: numbers at its exits, and words."""

import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.drawing.tables import aligned, spread
from experiments.recipe.experiment import Blocks
from experiments.training.metrics import IMAGES, Metric, Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Results(NamedTuple):
    """What a run came to. A notebook shows it as a table of its exits.

    Attributes:
      workdir: where its files are.
      history: the lines of ``metrics.jsonl``.
      about: cuts and parameter counts, as in ``config.json``.
      seeds: for each seed, the metrics of each exit on the test split; empty if stopped
        before any evaluation.
      stopped_by: the signal that ended the run early; None if it ran to its end.
      metrics: what is said of its task.
    """

    workdir: Path
    history: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]
    seeds: Sequence[Blocks]
    stopped_by: signal.Signals | None
    metrics: Metrics = IMAGES

    def __repr__(self) -> str:
        """The table; the history would fill pages."""
        said = self.metrics
        columns = [[spread(exit, of.form) for exit in of_seeds(of, self.seeds).T] for of in said.columns]
        rows = [("exit", said.title, *(metric.title for metric in said.others))]
        rows += [(str(i + 1), *cells) for i, cells in enumerate(zip(*columns, strict=True))]
        ended = f"; stopped by {self.stopped_by.name}" if self.stopped_by else ""
        return f"{aligned(rows)}\n\n{size_of(self.about)}{ended}"

    def _repr_markdown_(self) -> str:
        return repr(self)

    def plot(self) -> "Figure":
        """The headline number at every exit over the steps of training; ``%matplotlib inline`` shows it."""
        from experiments.drawing import figures  # training needs no library that draws

        return figures.exits(*self.over_time(), self.metrics.axis(), log=self.metrics.log)

    def over_time(self) -> tuple[list[int], np.ndarray]:
        """As :func:`over_time`, of the headline number."""
        return over_time(self.history, self.metrics.headline)


def mean(seeds: Sequence[Blocks]) -> list[dict[str, float]]:
    """The metrics of each block, averaged over the seeds."""
    return [
        {name: float(np.mean([block[name] for block in blocks])) for name in blocks[0]}
        for blocks in zip(*seeds, strict=True)
    ]


def tested(history: Sequence[Mapping[str, Any]], step: int) -> list[list[dict[str, float]]]:
    """What was recorded of the test split at a step: for each seed, for each block; empty if nothing was."""
    lines = [line for line in history if line["split"] == "test" and line["step"] == step]
    return [
        [
            {
                name: math.nan if values[i] is None else values[i]
                for name, values in line.items()
                if isinstance(values, list) and (name == "loss" or values[i] is not None)
            }
            for i in range(len(line["loss"]))
        ]
        for line in lines
    ]


def of_seeds(metric: Metric, seeds: Sequence[Blocks]) -> np.ndarray:
    """A number at every exit of every seed, ``[seeds, exits]``; NaN where there is none."""
    return np.array([metric.at(exits) for exits in seeds], float)


def over_time(history: Sequence[Mapping[str, Any]], metric: Metric) -> tuple[list[int], np.ndarray]:
    """When the test split was evaluated, and a number at every exit, mean over seeds: ``[steps, exits]``."""
    steps = sorted({line["step"] for line in history if line["split"] == "test"})
    return steps, np.array([np.mean(of_seeds(metric, tested(history, step)), axis=0) for step in steps])


def by_block(metric: Metric, exits: Sequence[float] | np.ndarray, num_blocks: int) -> list[str]:
    """Numbers of exits for a table of blocks; one block may have several exits."""
    shown = [metric.said(x) for x in exits]
    return shown if len(shown) == num_blocks else [", ".join(shown)]


def best_exit(metric: Metric, exits: np.ndarray) -> str:
    """The least of the numbers at the exits, and which exit has it; a dash if there are none."""
    if np.all(np.isnan(exits)):
        return "-"
    best = int(np.nanargmin(exits))
    return f"{metric.said(exits[best])} (exit {best + 1})"


def size_of(about: Mapping[str, Any]) -> str:
    """Units, blocks and parameters, in words."""
    units, heads = (sum(block[part] for block in about["parameters"]) for part in ("network", "head"))
    blocks = f"{len(about['parameters'])} blocks (cuts {about['cuts']})"
    return f"{about['units']} units in {blocks}, {units:,} parameters, {heads:,} in heads"


def side_by_side(results: Mapping[str, Results]) -> str:
    """What runs of one task came to, by name, as a Markdown table: exits and what heads hold."""
    headline = next(iter(results.values())).metrics.headline
    rows = [("rule", "blocks", "in heads", *(f"{which} exit, {headline.title}" for which in ("first", "best", "last")))]
    for name, result in results.items():
        means = np.mean(of_seeds(headline, result.seeds), axis=0)
        heads = sum(block["head"] for block in result.about["parameters"])
        shown = (headline.said(means[0]), best_exit(headline, means), headline.said(means[-1]))
        rows.append((name, str(len(result.about["parameters"])), f"{heads:,}", *shown))
    return aligned(rows)
