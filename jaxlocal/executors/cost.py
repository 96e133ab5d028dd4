"""What the compiled programs of a step take."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from jaxlocal.executors.accelerators import is_described
from jaxlocal.executors.collectives import collectives
from jaxlocal.executors.state import Program

MIB = 2**20


class Cost(NamedTuple):
    """What one step of a rule takes.

    Attributes:
      flops: floating-point operations per example, by the cost analysis of the step before it is compiled.
      temporaries: bytes that the compiled step (of several programs, the largest) allocates
        beside its arguments and results.
      total: bytes on the device at the highest point of a step, by the compiler's analysis:
        state, data, batch, temporaries and results.
      resident: bytes of ``total`` that are there before the program that runs at that point.
      moved: bytes that the programs of a step read and write, by the compiler's account; None where it has none, or
        counts otherwise than the device would (on a CPU, on a GPU).
      sent: bytes of collectives in a step, on each device.
      peak: bytes by which memory in use grew, at its highest, during a step; None where the
        system does not tell. On a CPU it is the process's. On a GPU it is the device's since
        the process began, so an upper bound.
    """

    flops: float
    temporaries: int
    total: int
    resident: int
    moved: float | None = None
    sent: int = 0
    peak: int | None = None


class Analysis(NamedTuple):
    """Of a program alone: operations; bytes of temporaries; of these and of results that are new; moved; and sent."""

    flops: float
    temporaries: int
    new: int
    moved: float | None = None
    sent: int = 0


def cost_of(programs: Sequence[Program], examples: int, known: dict[str, Analysis] | None = None) -> Cost:
    """Compiles the programs of a step (which costs nothing if they run later), and reads their analyses.

    Args:
      programs: lowered.
      examples: that each device learns from in a step.
      known: analyses by a hash of the program's text; what is in there is not compiled again, and new ones are added.
    """
    known, names = ({}, list(map(str, range(len(programs))))) if known is None else (known, list(map(_hash, programs)))
    todo = {name: program for name, program in zip(names, programs, strict=True) if name not in known}
    timing = any(device.platform == "gpu" and not is_described(device) for p in programs for device in p.devices)
    at_once = 1 if timing else min(max(1, len(todo)), cores())  # a GPU's compiler times kernels
    with ThreadPoolExecutor(at_once) as pool:
        compiled = list(pool.map(lambda program: program.compile(), todo.values()))
    known |= {name: _analysis(program, one) for (name, program), one in zip(todo.items(), compiled, strict=True)}
    found = [known[name] for name in names]
    each = [(program.times, of) for program, of in zip(programs, found, strict=True)]
    moved = [times * of.moved for times, of in each if of.moved is not None]
    totals = [program.resident + of.new for program, of in zip(programs, found, strict=True)]
    return Cost(
        flops=sum(times * of.flops for times, of in each) / examples,
        temporaries=max(of.temporaries for of in found),
        total=max(totals),
        resident=programs[totals.index(max(totals))].resident,
        moved=sum(moved) if len(moved) == len(each) else None,
        sent=sum(times * of.sent for times, of in each),
    )


def cores() -> int:
    """Of this process; of the machine, where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hash(program: Program) -> str:
    devices = f"{len(program.devices)} {program.devices[0].device_kind}"
    return hashlib.sha256(f"{devices}\n{program.lowered.as_text()}".encode()).hexdigest()


def _analysis(program: Program, compiled: jax.stages.Compiled) -> Analysis:
    memory: Any = compiled.memory_analysis()
    temporaries = memory.temp_size_in_bytes
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes + temporaries
    moved = None
    if program.devices[0].platform == "tpu":
        analysis: Any = compiled.cost_analysis() or {}
        moved = analysis.get("bytes accessed")
    sent = sum(collectives(compiled.as_text() or "").values()) if len(program.devices) > 1 else 0
    return Analysis(program.flops(), temporaries, new, moved, sent)
