"""What a step costs: computation and memory of the compiled step, and its speed beside others."""

import ctypes
import inspect
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.build import Experiment, build
from experiments.cli import UserError, cache_compilations
from experiments.registry import RULES, innermost
from jaxlocal import data
from jaxlocal.executors import Program, TrainState
from jaxlocal.variables import nbytes

MIB = 2**20


class Cost(NamedTuple):
    """What one step of a rule takes.

    Attributes:
      flops: floating-point operations per example, by the cost analysis of the step before it is compiled.
      temporaries: bytes that the compiled step (of several programs, the largest) allocates
        beside its arguments and results.
      total: bytes on the device at the highest point of a step, by the compiler's analysis:
        state, data, batch, temporaries and results.
      peak: bytes by which memory in use grew, at its highest, during a step; None where the
        system does not tell. On a CPU it is the process's. On a GPU it is the device's since
        the process began, so an upper bound.
    """

    flops: float
    temporaries: int
    total: int
    peak: int | None = None


def examples(experiment: Experiment, config: ConfigDict, step: int = 0, resident: Any = None) -> Any:
    """The data of a step, on the devices; ``resident`` if that is there before."""
    with closing(experiment.batches(config, range(step, step + 1), resident)) as batches:
        return next(batches)


def resident_bytes(experiment: Experiment, batch: Any) -> int:
    """Bytes of what all steps share in a step's data."""

    def shared(axis: int | None, part: Any) -> Any:
        return part if axis is None else None

    return nbytes(jax.tree.map(shared, experiment.dataset.batch_axes, batch, is_leaf=lambda axis: axis is None))


def of_step(experiment: Experiment, config: ConfigDict, state: TrainState, first: Any) -> Cost:
    """Compiles the step (which costs nothing if it is run later) and reads its analyses."""
    return of_programs(experiment.executor.programs(state, first), examples_of_a_device(experiment, config))


def examples_of_a_device(experiment: Experiment, config: ConfigDict) -> int:
    """How many examples of a step each device learns from: the compiler's analyses are of one device."""
    return config.batch_size * config.seeds // len(experiment.placement.devices)


def of_programs(programs: Sequence[Program], examples: int) -> Cost:
    """Compiles the programs of a step that learns from so many examples, and reads their analyses."""
    flops, temporaries, total = 0.0, 0, 0
    on_cpu = jax.default_backend() == "cpu"
    at_once = min(len(programs), len(os.sched_getaffinity(0))) if on_cpu else 1  # a GPU's compiler times kernels
    with ThreadPoolExecutor(at_once) as pool:
        executables = list(pool.map(lambda program: program.lowered.compile(), programs))
    for program, compiled in zip(programs, executables, strict=True):
        flops += program.times * program.flops()
        memory: Any = compiled.memory_analysis()
        temporaries = max(temporaries, memory.temp_size_in_bytes)
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        total = max(total, program.resident + new)
    return Cost(flops / examples, temporaries, total)


def lowered_flops(experiment: Experiment, config: ConfigDict) -> float:
    """Floating-point operations per example of the step before it is compiled: quick, and near enough to compare."""
    state = jax.eval_shape(lambda: experiment.init(config))
    programs = experiment.executor.programs(state, experiment.abstract_batch(config))
    flops = sum(program.times * program.flops() for program in programs)
    return flops / examples_of_a_device(experiment, config)


def widened(config: ConfigDict, flops: float, dataset: data.Input) -> Mapping[str, Any]:
    """The config's rule at the head width whose step takes ``flops`` per example; unchanged if it has no width.

    Returns:
      The rule. Widths go by steps of 1% and features are whole numbers, so the computation
      agrees to a few percent.

    Raises:
      UserError: if no width from 1/16 to 64 takes so many.
    """
    rule = config.rule.to_dict()
    leaf = innermost(rule)
    if "width" not in inspect.signature(RULES[leaf["name"]]).parameters:
        return rule
    if abs(lowered_flops(build(config, dataset), config) / flops - 1) < 0.005:
        return rule  # it takes as many already

    def excess(width: float) -> float:
        leaf["width"] = width
        changed = config.copy_and_resolve_references()
        changed.rule = ConfigDict(rule)
        return lowered_flops(build(changed, dataset), config) - flops

    narrow, wide = 1 / 16, 64.0
    if excess(narrow) > 0 or excess(wide) < 0:
        raise UserError(
            f"rule {leaf['name']}: no width from {narrow} to {wide} takes {flops / 1e6:.1f} MFLOP an example"
        )
    while wide / narrow > 1.01:
        middle = math.sqrt(narrow * wide)
        narrow, wide = (middle, wide) if excess(middle) < 0 else (narrow, middle)
    leaf["width"] = round(wide, 3)
    return rule


def measure(config: Mapping[str, Any]) -> Cost:
    """The cost of a config's step, with its measured peak; run it in a process of its own."""
    config = ConfigDict(config)
    experiment = build(config)
    state, first = experiment.init(config), examples(experiment, config)
    cost = of_step(experiment, config, state, first)
    state, _ = experiment.executor.step(state, first)  # what the first one takes once is not counted
    peaks = []
    for _ in range(3):  # memory that was freed but kept by the allocator hides part of one
        jax.block_until_ready(state)
        before = _forget_peak()
        state, _ = experiment.executor.step(state, first)
        jax.block_until_ready(state)
        peaks.append(None if before is None else _peak() - before)
    return cost._replace(peak=max((peak for peak in peaks if peak is not None), default=None))


def measure_alone(config: ConfigDict) -> Cost:
    """:func:`measure` in a fresh process.

    Raises:
      UserError: if that process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context, initializer=_start_measuring) as pool:
            return pool.submit(measure, config.to_dict()).result()
    except BrokenProcessPool as error:
        raise UserError(
            f"rule {config.rule.name}: the process that measured it was ended, out of memory perhaps"
        ) from error


def _start_measuring() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the parent is on the same device
    cache_compilations()


def speeds(
    experiments: Mapping[str, Experiment], config: ConfigDict, *, rounds: int = 7, least: float = 0.2
) -> dict[str, float]:
    """Examples per second of each experiment: medians over rounds in which all take turns.

    Args:
      experiments: by name, of one recipe.
      config: the recipe.
      rounds: turns of each.
      least: seconds that a turn lasts at least.
    """
    took = turns({name: (experiment, config) for name, experiment in experiments.items()}, rounds=rounds, least=least)
    return {name: config.batch_size * config.seeds / float(np.median(seconds)) for name, seconds in took.items()}


def turns(
    runs: Mapping[str, tuple[Experiment, ConfigDict]],
    *,
    rounds: int = 7,
    least: float = 0.2,
    beside: Mapping[str, Callable[[int], float]] | None = None,
) -> dict[str, list[float]]:
    """Seconds per step (of one batch) of each run, in each of the rounds in which all take turns.

    Args:
      runs: experiments and their configs by name, of one data set. Their states are in memory together.
      rounds: turns of each.
      least: seconds that a turn lasts at least; it ends with an update, where batches are accumulated.
      beside: others that take turns with them; each takes so many steps, and returns the seconds.
    """
    some, _ = next(iter(runs.values()))
    resident = some.dataset.resident(some.placement)
    runners = {name: _runner(*run, resident) for name, run in runs.items()} | dict(beside or {})
    update = {name: runs[name][1].accumulate if name in runs else 1 for name in runners}  # in steps
    steps, seconds = {}, {name: list[float]() for name in runners}
    for name, runner in runners.items():
        runner(update[name])  # compiles
        steps[name] = update[name] * max(1, math.ceil(least / runner(update[name])))
    for _ in range(rounds):
        for name, runner in runners.items():
            seconds[name].append(runner(steps[name]) / steps[name])
    return seconds


def _runner(experiment: Experiment, config: ConfigDict, resident: Any) -> Callable[[int], float]:
    """Takes so many steps on from where it stands, all on one batch; returns the seconds."""
    data, state = examples(experiment, config, resident=resident), experiment.init(config)

    def run(steps: int) -> float:
        nonlocal state
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(steps):
            state, _ = experiment.executor.step(state, data)
        jax.block_until_ready(state)
        return time.perf_counter() - began

    return run


def _forget_peak() -> int | None:
    """Starts a new peak, where that can be done; returns the bytes in use now."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats["bytes_in_use"]
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back to the system, and is not used again unseen
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _peak() -> int:
    """Bytes in use at the highest since then."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats["peak_bytes_in_use"]
    return _status("VmHWM")


def _status(field: str) -> int:
    """A field of Linux's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
