"""What a run came to: errors at its exits, in numbers and in words."""

import math
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.drawing import figures
from experiments.drawing.tables import aligned, spread
from experiments.recipe.experiment import Blocks


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
        return figures.exits(*errors_over_time(self.history))


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


def size_of(about: Mapping[str, Any]) -> str:
    """Units, blocks and parameters, in words."""
    units, heads = (sum(block[part] for block in about["parameters"]) for part in ("network", "head"))
    blocks = f"{len(about['parameters'])} blocks (cuts {about['cuts']})"
    return f"{about['units']} units in {blocks}, {units:,} parameters, {heads:,} in heads"


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


def percent(block: Mapping[str, float], digits: int) -> str:
    """A block's accuracy in percent, or a dash if its objective predicts no classes."""
    return f"{100 * block['accuracy']:.{digits}f}" if "accuracy" in block else "-"


def format_blocks(blocks: Sequence[Mapping[str, float]]) -> str:
    """One row of losses and one of accuracies in percent, first block to last."""
    loss = " ".join(f"{block['loss']:5.3f}" for block in blocks)
    accuracy = " ".join(percent(block, 1).rjust(5) for block in blocks)
    return f"  loss       {loss}\n  accuracy % {accuracy}"
