"""Measurements of cases: their log, what every table says of them, and the report with the frontier."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import jax

from experiments.app.environment import environment
from experiments.app.errors import EXHAUSTED, UserError
from experiments.app.files import as_json, directory, given_path, read_lines, saving
from experiments.cost.compiled import bound, resident_bytes
from experiments.drawing.tables import aligned
from experiments.drawing.trades import Point, frontier
from experiments.recipe.experiment import Experiment
from experiments.trials.cases import Case
from jaxlocal.executors import MIB, cost_of
from jaxlocal.variables import nbytes

Numbers = dict[str, Any]  # what was measured of a case; or why it was skipped, under "skipped"
# A title, and what is said, given a case's numbers and backprop's; None if they have none of it.
Column = tuple[str, Callable[[Numbers, Numbers], str | None]]
Height = tuple[str, Callable[[Numbers, Numbers], float]]


class Log:
    """The measurements of a workdir, one JSON line a case. Those of another environment do not count."""

    def __init__(self, workdir: str | None, name: str) -> None:
        if not workdir:
            raise UserError("--workdir is needed: a directory for the measurements")
        self.workdir, self._environment = directory(given_path(workdir, "--workdir")), environment()
        self._path = self.workdir / f"{name}.jsonl"
        with saving(self._path), self._path.open("ab"):
            os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)  # a line that was cut short
        lines = read_lines(self._path, ("case", "numbers", "environment"))
        self.known: dict[Case, Numbers] = {
            Case(**line["case"]): line["numbers"] for line in lines if line["environment"] == self._environment
        }

    def add(self, case: Case, numbers: Numbers) -> None:
        """Records a case; its older line does not count any more."""
        self.known[case] = numbers
        with self._path.open("a", encoding="utf-8") as file:
            line = {"case": case._asdict(), "numbers": numbers, "environment": self._environment}
            file.write(as_json(line) + "\n")


def analyse(experiment: Experiment) -> Numbers:
    """Compiles the step, without a state in memory: bytes, operations per example, and seconds of compilation.

    ``total`` leaves the data set out: its size says nothing about the rule.
    """
    state, batch = experiment.abstract()
    began = time.perf_counter()
    programs = experiment.executor.programs(state, batch)
    lowered = time.perf_counter()
    of = cost_of(programs, experiment.examples_of_a_device)
    return {
        "blocks": len(experiment.blocks),
        "programs": len(programs),
        "flops": of.flops,
        "state": nbytes(state),
        "temporaries": of.temporaries,
        "total": of.total - resident_bytes(experiment, batch),
        **({} if of.moved is None else {"moved": of.moved}),
        **({"sent": of.sent} if len(experiment.placement.devices) > 1 else {}),
        **({} if (seconds := bound(experiment, of)) is None else {"bound_seconds": seconds}),
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


class OutOfMemoryError(UserError):
    """The device has not enough memory."""


@contextlib.contextmanager
def memory_suffices(what: str = "it") -> Iterator[None]:
    """Within, a device that runs out of memory is an :class:`OutOfMemoryError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if EXHAUSTED not in str(error):
            raise
        raise OutOfMemoryError(f"the device has not enough memory for {what}") from error


def mib(field: str) -> tuple[Column, Column]:
    """Two columns: a number of bytes, and its ratio to backprop's."""
    return (f"{field} MiB", lambda x, _: f"{x[field] / MIB:,.1f}"), ratio(field)


def ratio(field: str) -> Column:
    """A column of ratios to backprop's."""
    return "÷ backprop's", against(lambda x: x[field])


def against(value: Callable[[Numbers], float]) -> Callable[[Numbers, Numbers], str | None]:
    """What to say of a value: its ratio to backprop's, unless backprop was skipped."""
    return lambda x, base: f"{value(x) / value(base):.2f}" if base else "-"


def shown(number: float | None, unit: float = 1.0) -> str | None:
    """A cell; none of a case that has no such number."""
    return None if number is None else f"{number * unit:,.1f}"


MEMORY: tuple[Column, ...] = (
    ("blocks", lambda x, _: str(x["blocks"])),
    ("state MiB", lambda x, _: f"{x['state'] / MIB:,.1f}"),
    *mib("temporaries"),
    *mib("total"),
    ("MFLOP / example", lambda x, _: f"{x['flops'] / 1e6:,.1f}"),
    ratio("flops"),
    ("GB moved", lambda x, _: shown(x.get("moved"), 1e-9)),
    ("MB sent", lambda x, _: shown(x.get("sent"), 1e-6)),
    ("ms at least", lambda x, _: shown(x.get("bound_seconds"), 1e3)),
)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point is as low in both and lower in one, to three digits."""
    points = [(float(f"{x:.3g}"), float(f"{y:.3g}")) for x, y in points]
    return [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def report(log: Log, cases: Sequence[Case], columns: Sequence[Column], axis: str, height: Height, picture: str) -> None:
    """Writes ``table.md`` and the picture, a table and a panel for each group. Without its backprop it has no panel.

    Args:
      log: with the numbers of the cases.
      cases: in the order of their rows.
      columns: of the table, beside those that say what the case is; one that no case of a group has is left out.
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
            points = [(x[axis] / MIB, height[1](x, base)) for x in done.values()] if base else []
            best = pareto(points) or [False] * len(done)
            said = [(title, [say(x, base) for x in done.values()]) for title, say in columns]
            said = [(title, cells) for title, cells in said if any(cells)]
            header = ("#", "rule", "cuts", "executor", "batch", *(title for title, _ in said), "frontier")
            rows: list[Sequence[str]] = [header]
            for i, case in enumerate(done):
                what = (str(i + 1), case.rule, case.cuts, case.executor, case.batch)
                rows.append((*what, *(cells[i] or "-" for _, cells in said), "*" * best[i]))
            panels[group] = [
                Point(case.rule, x["blocks"], case.executor, case.accumulate, memory * MIB / base[axis], other, star)
                for (case, x), (memory, other), star in zip(done.items(), points, best, strict=False)
            ]
            texts += [f"{aligned(rows)}\n"]
        texts += [*skipped, ""] if skipped else []
    if not panels:
        raise UserError("every case was skipped, for the reasons above")
    note = f"*: no other case is lower both in {axis} memory and in {height[0]}."
    text = "\n".join([*texts, note])
    (log.workdir / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\ntable: {log.workdir / 'table.md'}")
    if drawn := {group: points for group, points in panels.items() if points}:
        frontier(drawn, f"{axis} memory of a step, data set apart, ÷ backprop's", height[0], log.workdir / picture)
        print(f"picture: {log.workdir / picture}")
