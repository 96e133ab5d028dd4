"""What ``experiments.memory`` and ``experiments.speed`` measure.

A *case* is a model, a rule, its cuts, an executor, a batch and a dtype. Cases of one model, batch and
dtype are a *group*: they stand in one table and one picture, relative to the group's backprop.
Data are random images, or random tokens for a language model: they need no data set.
"""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments.app.calls import innermost, parse_call, parse_calls
from experiments.app.errors import UserError, one_of, user_input
from experiments.recipe.build import build
from experiments.recipe.experiment import Experiment
from experiments.recipe.fields import parse_cuts
from experiments.recipe.noise import dataset, noise, windows_of
from experiments.recipe.registry import DTYPES, EXECUTORS, MODELS, make, make_rule
from jaxlocal.executors import described


class Case(NamedTuple):
    """What is measured, as its flags have it."""

    model: str
    batch_size: int
    dtype: str
    image: int
    classes: int
    rule: str
    cuts: str
    executor: str
    accumulate: int
    device: str = ""

    @property
    def group(self) -> str:
        """What cases have in common that are compared."""
        windows, size = windows_of(self._model), f"{self.image}x{self.image} images of {self.classes} classes"
        if windows:
            size = f"windows of {windows.context} tokens out of {windows.vocabulary}"
        on = f", on {self.device}" if self.device else ""
        return f"{self.model}, {size}, batch {self.batch_size}, {self.dtype}{on}"

    @property
    def _model(self) -> dict[str, Any]:
        return parse_call(self.model, "models")

    @property
    def batch(self) -> str:
        """Examples in an update, and in how many batches."""
        small = self.batch_size // self.accumulate
        return f"{self.accumulate} x {small}" if self.accumulate > 1 else str(small)

    def label(self, note: str = "") -> str:
        """What distinguishes a case in its group; ``note`` goes after its cuts."""
        cut = (self.cuts + note, self.executor) if self.cuts != "-" else ()
        return ", ".join((self.rule, *cut, *([self.batch] if self.accumulate > 1 else [])))

    @property
    def baseline(self) -> "Case":
        """Backprop of the same group."""
        return self._replace(rule="backprop", cuts="-", executor="fused", accumulate=1)

    def config(self) -> ConfigDict:
        """Of a run on noise."""
        config = noise(self._model, self.image, self.classes, max(1024, self.batch_size))
        config.rule = ConfigDict(parse_call(self.rule, "rules"))
        if self.batch_size % self.accumulate:
            raise UserError(f"batch {self.batch_size} does not split into {self.accumulate} equal batches")
        config.batch_size, config.accumulate = self.batch_size // self.accumulate, self.accumulate
        config.duration = f"{self.accumulate} steps"
        config.cuts = "all" if self.cuts == "-" else self.cuts
        config.dtype, config.executor = self.dtype, self.executor
        config.device, config.data_parallel = self.device, ":" in self.device
        return config


def define_flags(values: flags.FlagValues) -> None:
    """The flags that say which cases there are, and where they go."""

    def strings(name: str, default: str, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    strings("models", "resnet(depth=32)", "Models, as calls: resnet(depth=32),vgg,gpt(layers=8).")
    strings("rules", "remat(backprop),dgl,auglocal(depth=2)", "Rules, as calls; backprop is always there beside them.")
    strings("cuts", "all", "Cuts of the rules that have any: all,even:4,balanced:4, and 3,6,9 once.")
    strings("batch_sizes", "128", "Examples in an update.")
    strings("executors", "fused,streamed", f"Of {', '.join(EXECUTORS)}; backprop's is fused.")
    strings("dtypes", "float32", f"Of {', '.join(DTYPES)}.")
    strings("accumulate", "1", "In how many small batches backprop takes the examples of an update.")
    flags.DEFINE_integer(
        "image", 32, "Side of the images, where a model reads these.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("classes", 10, "Number of their classes.", lower_bound=1, flag_values=values)
    axis = ["total", "temporaries"]
    flags.DEFINE_enum("axis", "total", axis, "The memory that the frontier is drawn over.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Where measurements, table and picture go.", flag_values=values)


def parse_cases(values: flags.FlagValues, devices: Sequence[str] = ("",)) -> list[Case]:
    """All cases on each of the devices, groups one after the other, backprop first in each.

    Backprop and what wraps it have no cuts, and one block needs one executor only; the others do not accumulate.

    Args:
      values: of the flags.
      devices: that are described; the empty one is this machine's own.

    Raises:
      UserError: if a flag makes no sense for any case.
    """
    with user_input("--device"):
        for device in filter(None, devices):
            described(device)
    models, rules = parse_calls(values.models, "models"), parse_calls(values.rules, "rules")
    units = [make("model", MODELS, spec) for spec in models.values()]
    for spec in rules.values():
        make_rule(spec)
    cuts = split_cuts(values.cuts)
    for cut in cuts:
        _check_cut(cut, units)
    executors = [one_of("executor", name.strip(), tuple(EXECUTORS)) for name in values.executors.split(",")]
    dtypes = [one_of("dtype", name.strip(), tuple(DTYPES)) for name in values.dtypes.split(",")]
    batch_sizes, accumulate = _numbers("batch_sizes", values.batch_sizes), _numbers("accumulate", values.accumulate)
    cases = []
    for model, batch_size, dtype, device in product(models, batch_sizes, dtypes, devices):
        for rule, spec in ({"backprop": {"name": "backprop"}} | rules).items():
            whole = innermost(spec)["name"] == "backprop"
            ways = product(["-"], ["fused"], [1, *accumulate]) if whole else product(cuts, executors, [1])
            what = (model, batch_size, dtype, values.image, values.classes, rule)
            cases += [Case(*what, *way, device=device) for way in ways]
    return list(dict.fromkeys(cases))


def split_cuts(text: str) -> list[str]:
    """``all,3,6,even:4`` is ``all``, ``3,6`` and ``even:4``: numbers in a row are the cuts of one case."""
    return re.findall(r"\d+(?:,\d+)*|[^,]+", text.replace(" ", "")) or [text]


def _check_cut(cut: str, models: Sequence[tuple[Any, ...]]) -> None:
    """One that some model can have; for the others its cases are skipped."""
    errors = []
    for units in models:
        try:
            parse_cuts(cut, units)
        except ValueError as error:
            errors.append(error)
    if len(errors) == len(models):
        raise UserError(f"--cuts: {errors[0]}")


def _numbers(flag: str, text: str) -> list[int]:
    with user_input(f"--{flag}"):
        numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise UserError(f"--{flag}={text}: give whole numbers from 1 up")
    return numbers


def built(case: Case) -> Experiment:
    """The experiment of a case."""
    config = case.config()
    return build(config, dataset(config.dataset, windows_of(config.model)))
