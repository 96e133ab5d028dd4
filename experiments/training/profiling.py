"""Where a step's time goes: a trace of a few steps, and a table of it by block and kind of operation.

A trace has an event for each instruction of the compiled step that was run. The program's text says what in the code an
instruction comes from, blocks included (``jit(step)/block_3/jit(update)/transpose(jvp(BasicBlock))/conv1/...``). On a
CPU events are of its threads, on a GPU of its kernels; both name their instruction.
"""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from experiments.drawing.tables import aligned
from jaxlocal.executors import Program

CONV = "conv_general_dilated"
KINDS = ("conv", "conv input grad", "conv weight grad", "batch norm", "dense", "optimizer", "other")
NO_BLOCK = "no block"
MOST = 20  # rows of blocks
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_OPERANDS = re.compile(r"%([\w.\-]+)")

Spent = Mapping[tuple[str, str], float]  # seconds by block and kind
_Source = tuple[str, str] | int | None  # of work: block and kind, or the number of a task
_Span = tuple[float, float, _Source]  # start, minus the duration in nanoseconds, what it is of


class Instruction(NamedTuple):
    """Of a compiled program.

    Attributes:
      op_name: what it comes from; empty if that is not known.
      size: elements of its result.
      operands: their names.
      calls: the computation that it runs, if any.
    """

    op_name: str
    size: int
    operands: Sequence[str]
    calls: str


def parse(text: str) -> tuple[dict[str, Instruction], dict[str, list[str]]]:
    """Reads a program's text: its instructions by name, and the names in each computation, its result last."""
    found: dict[str, Instruction] = {}
    computations: dict[str, list[str]] = {}
    here: list[str] = []
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            name, rest = match.groups()
            shape, dims = re.search(r"\[([\d,]*)\]", rest), re.search(r'op_name="([^"]*)"', rest)
            calls = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", rest)
            size = math.prod(int(n) for n in shape[1].split(",") if n) if shape else 0
            operands = _OPERANDS.findall(rest.split("metadata=")[0].split("calls=")[0])
            op_name = dims[1] if dims else ""
            if "__onednn$convolution" in rest and not op_name.endswith(CONV):  # called after what is fused to it
                op_name = f"{op_name.rpartition('/')[0]}/{CONV}"
            found[name] = Instruction(op_name, size, operands, calls[1] if calls else "")
            here.append(name)
        elif match := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            here = computations.setdefault(match[1], [])
    return found, computations


def classify(text: str) -> dict[str, tuple[str, str]]:
    """The block and the kind of each instruction of a compiled program.

    A fusion is what its convolution or product is; failing that, what it is called after, its result or an operand.
    """
    instructions, computations = parse(text)
    kernels = {  # layers of several units may have one name
        (_layer(x.op_name), instructions[x.operands[1]].size)
        for x in instructions.values()
        if x.op_name.endswith(CONV) and "transpose(" not in x.op_name and len(x.operands) > 1
        if x.operands[1] in instructions
    }

    def told_by(instruction: Instruction) -> Instruction:
        inside = [instructions[name] for name in reversed(computations.get(instruction.calls, []))]
        around = [instructions[name] for name in instruction.operands if name in instructions]
        heavy = [x for x in (instruction, *inside) if x.op_name.endswith((CONV, "dot_general"))]
        return next((x for x in (*heavy, instruction, *inside, *around) if x.op_name), instruction)

    def kind(x: Instruction) -> str:
        path = x.op_name.split("/")
        if "weight_gradient" in path:  # convolution.py: in parts
            return "conv weight grad"
        if path[-1] == CONV:
            if "transpose(" not in x.op_name:
                return "conv"
            return "conv weight grad" if (_layer(x.op_name), x.size) in kernels else "conv input grad"
        if path[-1] == "dot_general":
            return "dense"
        if any(re.search(r"bn\d*$|norm", part) for part in path):
            return "batch norm"
        return "optimizer" if _block(x.op_name) != NO_BLOCK and "jvp(" not in x.op_name else "other"

    tellers = {name: told_by(x) for name, x in instructions.items()}
    return {name: (_block(x.op_name), kind(x)) for name, x in tellers.items()}


def _block(op_name: str) -> str:
    match = re.search(r"\bblock_(\d+)\b", op_name)
    return f"block {match[1]}" if match else NO_BLOCK


def _layer(op_name: str) -> str:
    """Which layer, forwards or backwards."""
    return re.sub(r"transpose\((.*?\))\)", r"\1", op_name)


def spent(trace: Path, kinds: Mapping[str, Mapping[str, tuple[str, str]]]) -> Spent:
    """Seconds of work by block and kind, over all threads.

    What an instruction waits for within itself counts once. On a CPU it may leave its work to tasks, of any thread:
    these are of the instruction, or of the task, in which they were recorded.

    Args:
      trace: an ``.xplane.pb``.
      kinds: of each program (``jit_step``), what :func:`classify` says.
    """
    own: list[tuple[_Source, float]] = []
    recorded: dict[int, _Source] = {}
    for plane in ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            own += _own_times(_spans(line.events, kinds), recorded)
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    for source, nanoseconds in own:
        while isinstance(source, int):
            source = recorded.get(source)
        if source:
            seconds[source] += nanoseconds / 1e9
    return seconds


def _spans(events: Iterable[Any], kinds: Mapping[str, Mapping[str, tuple[str, str]]]) -> list[_Span]:
    """Instructions and tasks that a thread ran, and records of tasks (their end is before their start), by time."""
    spans: list[_Span] = []
    regions: list[tuple[float, int]] = []
    for event in sorted(events, key=lambda event: (event.start_ns, -event.duration_ns)):
        with warnings.catch_warnings():  # of the type of statistics, which C++ makes
            warnings.simplefilter("ignore", DeprecationWarning)
            stats: dict[str, Any] = dict(event.stats)
        match event.name.removeprefix("ThreadpoolListener::"):
            case "Record":
                spans.append((event.start_ns, 1.0, stats["_p"]))
            case "StartRegion":
                regions.append((event.start_ns, stats["_c"]))
            case "StopRegion" if regions:
                start, task = regions.pop()
                spans.append((start, start - event.start_ns, task))
            case name if stats.get("hlo_module") in kinds and "hlo_op" in stats:
                known = kinds[str(stats["hlo_module"])]
                op = str(stats["hlo_op"]).partition("__onednn$")[0]  # what a call of that library goes by
                what = known.get(op, known.get(name, (NO_BLOCK, "other")))
                spans.append((event.start_ns, -event.duration_ns, what))
    return sorted(spans, key=lambda span: span[:2])


def _own_times(spans: Iterable[_Span], recorded: dict[int, _Source]) -> list[tuple[_Source, float]]:
    """How long each span of a thread lasts without those within it; notes in which of them tasks are recorded."""
    own: list[tuple[_Source, float]] = []
    open_ends: list[tuple[float, _Source]] = []
    for start, minus, what in spans:
        while open_ends and open_ends[-1][0] <= start:
            open_ends.pop()
        around = open_ends[-1][1] if open_ends else None
        if minus > 0 and isinstance(what, int):
            recorded[what] = around
            continue
        own += [(around, minus), (what, -minus)]
        open_ends.append((start - minus, what))
    return own


def table(seconds: Spent, steps: int) -> str:
    """Shares of the work of so many steps in percent, blocks as rows and kinds as columns."""
    total = sum(seconds.values()) or 1.0
    of_block: defaultdict[str, float] = defaultdict(float)
    for (block, _), x in seconds.items():
        of_block[block] += x
    shown = sorted(
        nlargest(MOST, of_block, key=lambda block: of_block[block]),
        key=lambda block: (block == NO_BLOCK, len(block), block),
    )

    def row(title: str, members: Iterable[str]) -> tuple[str, ...]:
        chosen = set(members)
        shares = [sum(seconds.get((block, kind), 0.0) for block in chosen) / total for kind in KINDS]
        return (title, *(f"{100 * x:.1f}" for x in (*shares, sum(shares))))

    rows = [("% of the work", *KINDS, "all"), *(row(block, [block]) for block in shown)]
    if rest := of_block.keys() - set(shown):
        rows.append(row(f"{len(rest)} more", rest))
    rows.append(row("all", of_block))
    work = f"{sum(seconds.values()) / steps:.4f} s of work a step, over all threads"
    return f"{aligned(rows)}\n\n{work}; 'other' is none of the kinds, or cannot be told"


class Profiler:
    """Traces the third to sixth step of a run, so that neither compilation nor the first transfers are in it.

    Args:
      directory: where trace and table go.
      first_step: of this process; None traces nothing.
      programs: of the executor.
    """

    def __init__(
        self, directory: Path, first_step: int | None, programs: Callable[[Any, Any], Sequence[Program]]
    ) -> None:
        self._directory, self._programs_of = directory, programs
        self._steps = range(0) if first_step is None else range(first_step + 2, first_step + 6)
        self._tracing, self._taken = False, 0
        self._programs: Sequence[Program] = ()
        if self._steps:  # a program of the cache may come from code in which its blocks had other names
            jax.config.update("jax_compilation_cache_include_metadata_in_key", True)

    def before(self, step: int, state: Any, batch: Any) -> None:
        """To be called before each step; starts or ends the trace where its time has come."""
        if step in self._steps and not self._tracing:
            self._programs = self._programs_of(state, batch)
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory))
            self._tracing, self._taken = True, 0
        elif self._tracing and step == self._steps.stop:
            jax.block_until_ready(state)
            self.close()
        self._taken += self._tracing

    def close(self) -> None:
        """Ends the trace, if one is under way, says where it is and what is in it."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            print(f"trace in {self._directory}", flush=True)
            self._say()

    def _say(self) -> None:
        if len(self._programs) > 1:
            print(
                "its blocks cannot be told apart, as they share programs: --config.executor=fused has a table of them"
            )
            return
        (program,) = self._programs
        compiled = program.compile().as_text() or ""
        module = re.match(r"HloModule ([\w.\-]+)", compiled)
        trace = max(self._directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        text = table(spent(trace, {module[1]: classify(compiled)} if module else {}), self._taken)
        (self._directory / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
