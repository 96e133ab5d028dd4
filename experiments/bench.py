"""What ``experiments.memory`` and ``experiments.speed`` share: cases, what is known of them, and the report.

A *case* is a model, a rule, its cuts, an executor, a batch and a dtype. Cases of one model, batch and
dtype are a *group*: they stand in one table and one picture, relative to the group's backprop.
Data are random images, which need no data set.
"""

import contextlib
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import cost
from experiments.build import DTYPES, EXECUTORS, Experiment, build, environment, parse_cuts
from experiments.cli import UserError, one_of, user_input
from experiments.configs import common
from experiments.cost import MIB
from experiments.pictures import Point, frontier
from experiments.record import read_history
from experiments.registry import MODELS, innermost, make, make_rule, parse_calls
from experiments.summary import aligned
from jaxlocal import data
from jaxlocal.variables import nbytes

Numbers = dict[str, Any]  # what was measured of a case; or why it was skipped, under "skipped"
Column = tuple[str, Callable[[Numbers, Numbers], str]]  # title; what it says, given a case's numbers and backprop's


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

    @property
    def group(self) -> str:
        """What cases have in common that are compared."""
        size = f"{self.image}x{self.image} images of {self.classes} classes"
        return f"{self.model}, {size}, batch {self.batch_size}, {self.dtype}"

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
        """Of a run on random images."""
        config = common.noise(self.image, self.classes, max(1024, self.batch_size))
        for field, text in (("model", self.model), ("rule", self.rule)):
            (spec,) = parse_calls(text, f"{field}s").values()
            config[field] = ConfigDict(spec)
        if self.batch_size % self.accumulate:
            raise UserError(f"batch {self.batch_size} does not split into {self.accumulate} equal batches")
        config.batch_size, config.accumulate = self.batch_size // self.accumulate, self.accumulate
        config.duration = f"{self.accumulate} steps"
        config.cuts = "all" if self.cuts == "-" else self.cuts
        config.dtype, config.executor = self.dtype, self.executor
        return config


def define_flags(values: flags.FlagValues) -> None:
    """The flags that say which cases there are, and where they go."""

    def strings(name: str, default: str, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    strings("models", "resnet(depth=32)", "Models, as calls: resnet(depth=32),vgg.")
    strings("rules", "remat(backprop),dgl,auglocal(depth=2)", "Rules, as calls; backprop is always there beside them.")
    strings("cuts", "all", "Cuts of the rules that have any: all,even:4,balanced:4, and 3,6,9 once.")
    strings("batch_sizes", "128", "Examples in an update.")
    strings("executors", "fused,streamed", f"Of {', '.join(EXECUTORS)}; backprop's is fused.")
    strings("dtypes", "float32", f"Of {', '.join(DTYPES)}.")
    strings("accumulate", "1", "In how many small batches backprop takes the examples of an update.")
    flags.DEFINE_integer("image", 32, "Side of the images.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("classes", 10, "Number of classes.", lower_bound=1, flag_values=values)
    axis = ["total", "temporaries"]
    flags.DEFINE_enum("axis", "total", axis, "The memory that the frontier is drawn over.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Where measurements, table and picture go.", flag_values=values)


def parse_cases(values: flags.FlagValues) -> list[Case]:
    """All cases, groups one after the other, backprop first in each.

    Backprop and what wraps it have no cuts, and one block needs one executor only; the others do not accumulate.

    Raises:
      UserError: if a flag makes no sense for any case.
    """
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
    for model, batch_size, dtype in product(models, batch_sizes, dtypes):
        for rule, spec in ({"backprop": {"name": "backprop"}} | rules).items():
            whole = innermost(spec)["name"] == "backprop"
            ways = product(["-"], ["fused"], [1, *accumulate]) if whole else product(cuts, executors, [1])
            cases += [Case(model, batch_size, dtype, values.image, values.classes, rule, *way) for way in ways]
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


class Log:
    """The measurements of a workdir, one JSON line a case. Those of another environment do not count."""

    def __init__(self, workdir: str | None, name: str) -> None:
        if not workdir:
            raise UserError("--workdir is needed: a directory for the measurements")
        self.workdir, self._environment = Path(workdir), environment()
        self._path = self.workdir / f"{name}.jsonl"
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab"):
                os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)  # a line that was cut short
        except OSError as error:
            raise UserError(f"workdir {self.workdir} cannot be written: {error.strerror}") from error
        lines = read_history(self._path, ("case", "numbers", "environment"))
        self.known: dict[Case, Numbers] = {
            Case(**line["case"]): line["numbers"] for line in lines if line["environment"] == self._environment
        }

    def add(self, case: Case, numbers: Numbers) -> None:
        """Records a case; its older line does not count any more."""
        self.known[case] = numbers
        with self._path.open("a") as file:
            line = {"case": case._asdict(), "numbers": numbers, "environment": self._environment}
            file.write(json.dumps(line) + "\n")


def analyse(experiment: Experiment, config: ConfigDict) -> Numbers:
    """Compiles the step, without a state in memory: bytes, operations per example, and seconds of compilation.

    ``total`` leaves the data set out: its size says nothing about the rule.
    """
    state, batch = jax.eval_shape(lambda: experiment.init(config)), experiment.abstract_batch(config)
    began = time.perf_counter()
    programs = experiment.executor.programs(state, batch)
    lowered = time.perf_counter()
    of = cost.of_programs(programs, config.batch_size)
    return {
        "blocks": len(experiment.blocks),
        "programs": len(programs),
        "flops": of.flops,
        "state": nbytes(state),
        "temporaries": of.temporaries,
        "total": of.total - cost.resident_bytes(experiment, batch),
        "lower_seconds": lowered - began,
        "compile_seconds": time.perf_counter() - lowered,
    }


def attempt(case: Case, measure: Callable[[Case], Numbers]) -> Numbers:
    """What ``measure`` finds; or the reason, if the case cannot be."""
    try:
        with memory_suffices():
            return measure(case)
    except UserError as error:
        print(f"skipped: {case.label()}: {error}", flush=True)
        return {"skipped": str(error)}


@contextlib.contextmanager
def memory_suffices(what: str = "it") -> Iterator[None]:
    """Within, a device that runs out of memory is a :class:`UserError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"the device has not enough memory for {what}") from error


def built(case: Case) -> tuple[Experiment, ConfigDict]:
    """The experiment of a case, and its config."""
    config = case.config()
    return build(config, _dataset(config.dataset)), config


@functools.cache
def _dataset(name: str) -> data.Input:
    """One for all cases."""
    return data.InMemory(data.load(name))


def mib(field: str) -> tuple[Column, Column]:
    """Two columns: a number of bytes, and its ratio to backprop's."""
    return (f"{field} MiB", lambda x, _: f"{x[field] / MIB:,.1f}"), ratio(field)


def ratio(field: str) -> Column:
    """A column of ratios to backprop's."""
    return "÷ backprop's", against(lambda x: x[field])


def against(value: Callable[[Numbers], float]) -> Callable[[Numbers, Numbers], str]:
    """What to say of a value: its ratio to backprop's, unless backprop was skipped."""
    return lambda x, base: f"{value(x) / value(base):.2f}" if base else "-"


MEMORY: tuple[Column, ...] = (
    ("blocks", lambda x, _: str(x["blocks"])),
    ("state MiB", lambda x, _: f"{x['state'] / MIB:,.1f}"),
    *mib("temporaries"),
    *mib("total"),
    ("MFLOP / example", lambda x, _: f"{x['flops'] / 1e6:,.1f}"),
    ratio("flops"),
)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point is as low in both and lower in one, to three digits."""
    points = [(float(f"{x:.3g}"), float(f"{y:.3g}")) for x, y in points]
    return [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def report(log: Log, cases: Sequence[Case], columns: Sequence[Column], axis: str, height: Column, picture: str) -> None:
    """Writes ``table.md`` and the picture, a table and a panel for each group. Without its backprop it has no panel.

    Args:
      log: with the numbers of the cases.
      cases: in the order of their rows.
      columns: of the table, beside those that say what the case is.
      axis: the memory that the frontier is drawn over, ``total`` or ``temporaries``.
      height: axis label and value of what memory is traded for, relative to backprop.
      picture: file name.

    Raises:
      UserError: if nothing could be measured.
    """
    texts, panels = [], {}
    for group, members in groupby(cases, lambda case: case.group):
        known = {case: log.known[case] for case in members if case in log.known}
        done = {case: numbers for case, numbers in known.items() if "skipped" not in numbers}
        skipped = [f"- skipped: {case.label()}: {known[case]['skipped']}" for case in known if case not in done]
        texts += [f"## {group}\n"]
        if done:
            base = done.get(next(iter(done)).baseline, {})
            points = [(x[axis] / MIB, float(height[1](x, base))) for x in done.values()] if base else []
            best = pareto(points) or [False] * len(done)
            header = ("#", "rule", "cuts", "executor", "batch", *(title for title, _ in columns), "frontier")
            rows: list[Sequence[str]] = [header]
            for i, (case, x) in enumerate(done.items()):
                what = (str(i + 1), case.rule, case.cuts, case.executor, case.batch)
                rows.append((*what, *(say(x, base) for _, say in columns), "*" * best[i]))
            labels = [case.label(f" (K={x['blocks']})") for case, x in done.items()]
            panels[group] = [Point(label, *at, star) for label, at, star in zip(labels, points, best, strict=False)]
            texts += [f"{aligned(rows)}\n"]
        texts += [*skipped, ""] if skipped else []
    if not panels:
        raise UserError("every case was skipped, for the reasons above")
    note = f"*: no other case is lower both in {axis} memory and in {height[0]}."
    text = "\n".join([*texts, note])
    (log.workdir / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\ntable: {log.workdir / 'table.md'}")
    if drawn := {group: points for group, points in panels.items() if points}:
        frontier(drawn, f"{axis} memory of a step, data set apart (MiB)", height[0], log.workdir / picture)
        print(f"picture: {log.workdir / picture}")
