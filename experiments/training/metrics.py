"""How answers are judged: what tables, pictures and log lines say of a task.

A run records ``loss`` and ``accuracy``, as its blocks report them. Whatever else is said follows from these, here.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.recipe.experiment import Blocks, Experiment
from jaxlocal import data


class Metric(NamedTuple):
    """A number at every exit.

    Attributes:
      title: of its column, its unit included.
      form: of its digits, as in a format string.
      at: from the metrics of each block to the number at every exit, first to last; None, or NaN, where there is none.
    """

    title: str
    form: str
    at: Callable[[Blocks], Sequence[float | None]]

    def said(self, x: float | None) -> str:
        """The number, or a dash if there is none."""
        return "-" if x is None or math.isnan(x) else format(x, self.form)

    def mean(self, seeds: Sequence[Blocks]) -> list[float | None]:
        """At every exit, over the seeds."""
        exits = zip(*(self.at(blocks) for blocks in seeds), strict=True)
        return [None if None in of_seeds else float(np.mean(of_seeds)) for of_seeds in exits]


class Metrics(NamedTuple):
    """What is said of a task's answers.

    Attributes:
      name: of the headline number, in words, without its unit.
      unit: of the headline number.
      headline: what runs, and checkpoints of a run, are compared by; less is better.
      others: what else a table of exits has; the first of them also where there is little room.
      logged: rows of a log line, of blocks or of exits.
      probe: of a linear probe, of which there is an accuracy and no more.
      log: whether curves of the headline number are drawn over a logarithmic axis.
      counted: what the throughput is of: ``images`` or ``tokens``.
      rate: its unit.
    """

    name: str
    unit: str
    headline: Metric
    others: tuple[Metric, ...]
    logged: tuple[Metric, ...]
    probe: Metric
    log: bool
    counted: str
    rate: str

    @property
    def columns(self) -> tuple[Metric, ...]:
        """Of a table of exits, the headline number first."""
        return self.headline, *self.others

    @property
    def title(self) -> str:
        """Of the headline number, where nothing else says of which split it is."""
        return f"{self.name.split()[0]} {self.headline.title}"

    def of_last(self, seeds: Sequence[Blocks]) -> float | None:
        """The headline number at the last exit, mean over the seeds; None if that is no finite number."""
        found = self.headline.mean(seeds)[-1]
        return found if found is not None and math.isfinite(found) else None

    def axis(self, where: str = "") -> str:
        """The headline number as a picture's axis has it; ``where`` says at which exits."""
        return f"{self.name}{where and f' {where}'} ({self.unit})"

    @property
    def probe_axis(self) -> str:
        """The number of a linear probe as a picture's axis has it."""
        return f"{self.name.split()[0]} {self.probe.title.split()[0]} of a linear probe (%)"

    def lines(self, seeds: Sequence[Blocks]) -> str:
        """A row for each of the logged numbers, first to last, mean over the seeds."""
        width = max(len(metric.title) for metric in self.logged)
        rows = []
        for metric in self.logged:
            width_of_cell = len(format(0.0, metric.form))
            cells = ["-".rjust(width_of_cell) if x is None else format(x, metric.form) for x in metric.mean(seeds)]
            rows.append(f"  {metric.title.ljust(width)} {' '.join(cells)}")
        return "\n".join(rows)


def exits_of(blocks: Blocks) -> list[Mapping[str, float]]:
    """``loss`` and ``accuracy`` of every exit, first to last; empty where an exit predicts nothing.

    Where a position tells several tokens, they are those of the next one.
    """
    found: list[Mapping[str, float]] = []
    for block in blocks:
        # Under deep supervision one block has all exits, each a term of its loss, and so is the network's output.
        inner = [f"exit_{i + 1}" for i in range(sum(bool(re.fullmatch(r"exit_\d+", name)) for name in block))]
        terms = [(block.get(f"{name}/token_1", block[name]), block.get(f"{name}/accuracy")) for name in inner]
        last = ("output/token_1", "output") if inner else ("token_1", "loss")
        terms.append((next((block[name] for name in last if name in block), math.nan), block.get("accuracy")))
        found += [{} if accuracy is None else {"loss": loss, "accuracy": accuracy} for loss, accuracy in terms]
    return found


def exit_errors(blocks: Blocks) -> list[float]:
    """Error in percent at every exit, first to last; NaN where an exit predicts no classes."""
    return [100 * (1 - exit.get("accuracy", math.nan)) for exit in exits_of(blocks)]


def _at_blocks(name: str, scale: float = 1.0) -> Callable[[Blocks], list[float | None]]:
    return lambda blocks: [scale * block[name] if name in block else None for block in blocks]


def _at_exits(name: str, of: Callable[[float], float]) -> Callable[[Blocks], list[float | None]]:
    return lambda blocks: [of(exit[name]) if exit else None for exit in exits_of(blocks)]


_ERROR = Metric("error %", ".2f", exit_errors)

IMAGES = Metrics(
    name="test error",
    unit="%",
    headline=_ERROR,
    others=(),
    logged=(Metric("loss", "5.3f", _at_blocks("loss")), Metric("accuracy %", "5.1f", _at_blocks("accuracy", 100))),
    probe=_ERROR,
    log=True,
    counted="images",
    rate="img/s",
)


@functools.cache
def of_text(unit: str, *, smoothed: bool) -> Metrics:
    """Of language models, whose loss is the cross-entropy of the next token: in nats, the mean over all positions.

    Args:
      unit: what a token is: ``character``, ``byte`` or ``token``.
      smoothed: whether labels are smoothed, so that neither bits nor a perplexity follow from the loss.
    """
    per = f"nats per {unit}" + ", labels smoothed" * smoothed
    nats = Metric(per, ".4f", _at_exits("loss", float))
    bits = Metric(f"bits per {unit}", ".4f", _at_exits("loss", lambda loss: loss / math.log(2)))
    perplexity = Metric(
        "perplexity", "#.4g", _at_exits("loss", lambda loss: math.inf if loss > 700 else math.exp(loss))
    )
    accuracy = Metric("accuracy %", ".2f", _at_exits("accuracy", lambda accuracy: 100 * accuracy))
    others = (accuracy,) if smoothed else (bits, perplexity, accuracy)
    logged = tuple(metric._replace(form=metric.form.replace(".", "7.")) for metric in (nats, *others))
    return Metrics("validation loss", per, nats, others, logged, accuracy, log=False, counted="tokens", rate="tokens/s")


def metrics_of(experiment: Experiment) -> Metrics:
    """Those of an experiment's task."""
    if not experiment.task.each:
        return IMAGES
    return of_text(getattr(experiment.dataset, "unit", "token"), smoothed=experiment.config.label_smoothing > 0)


def recorded(config: Mapping[str, Any], about: Mapping[str, Any]) -> Metrics:
    """Those of a run, from what its ``config.json`` says; where the unit is not said, texts were of characters."""
    if not data.is_text(config["dataset"]):
        return IMAGES
    described = about.get("data") or {}
    return of_text(described.get("unit", "character"), smoothed=config["label_smoothing"] > 0)


def counted(experiment: Experiment, examples: int) -> int:
    """So many examples in images, or in the tokens that they are made of."""
    return examples * (experiment.input_shape[0] if experiment.task.each else 1)
