"""What a step takes when it is run: seconds, by turns, and memory in a process of its own."""

import ctypes
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.app.program import cache_compilations
from experiments.recipe.build import build
from experiments.recipe.experiment import Experiment
from jaxlocal.executors import Cost, cost_of

Runner = Callable[[int], float]  # makes so many steps; returns the seconds


def speeds(experiments: Mapping[str, Experiment]) -> dict[str, float]:
    """Examples per second of each experiment: medians over rounds in which all take turns."""
    took = turns(experiments)
    return {
        name: of.config.batch_size * len(of.seeds) / float(np.median(took[name])) for name, of in experiments.items()
    }


def turns(
    experiments: Mapping[str, Experiment],
    *,
    rounds: int = 7,
    least: float = 0.2,
    beside: Mapping[str, Runner] | None = None,
) -> dict[str, list[float]]:
    """Seconds per step (of one batch) of each experiment, in each of the rounds in which all take turns.

    Args:
      experiments: by name, of one data set. Their states are in memory together.
      rounds: turns of each.
      least: seconds that a turn lasts at least; it ends with an update, where batches are accumulated.
      beside: others that take turns with them.
    """
    some = next(iter(experiments.values()))
    resident = some.dataset.resident(some.placement)
    runners = {
        name: timed(repeated(of.executor.step, of.init(), of.data_of(0, resident))) for name, of in experiments.items()
    } | dict(beside or {})
    update = {name: experiments[name].config.accumulate if name in experiments else 1 for name in runners}  # in steps
    steps = {}
    for name, runner in runners.items():
        runner(update[name])  # compiles
        steps[name] = update[name] * max(1, math.ceil(least / runner(update[name])))
    return take_turns(runners, steps, rounds)


def take_turns(runners: Mapping[str, Runner], steps: Mapping[str, int], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each runner, in each of the rounds, with so many steps in a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            seconds[name].append(runner(steps[name]) / steps[name])
    return seconds


def repeated(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, data: Any) -> Callable[[int], None]:
    """Makes so many steps from where it stands, all on the same data, and waits for them."""
    jax.block_until_ready(state)

    def turn(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, data)
        jax.block_until_ready(state)

    return turn


def timed(turn: Callable[[int], None]) -> Runner:
    """What makes so many steps, with a clock."""

    def run(steps: int) -> float:
        began = time.perf_counter()
        turn(steps)
        return time.perf_counter() - began

    return run


def measure_alone(experiment: Experiment) -> Cost:
    """The cost of a step with its measured peak, in a fresh process, which loads the data set anew.

    Raises:
      UserError: if that process was ended from outside.
    """
    config = experiment.config
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context, initializer=_start_measuring) as pool:
            return pool.submit(_measure, config.to_dict()).result()
    except BrokenProcessPool as error:
        raise UserError(
            f"rule {config.rule.name}: the process that measured it was ended, out of memory perhaps"
        ) from error


def _measure(config: Mapping[str, Any]) -> Cost:
    """In the process."""
    experiment = build(ConfigDict(config))
    state, first = experiment.init(), experiment.data_of(0)
    cost = cost_of(experiment.executor.programs(state, first), experiment.examples_of_a_device)
    state, _ = experiment.executor.step(state, first)  # what the first one takes once is not counted
    peaks = []
    for _ in range(3):  # memory that was freed but kept by the allocator hides part of one
        jax.block_until_ready(state)
        before = _forget_peak()
        state, _ = experiment.executor.step(state, first)
        jax.block_until_ready(state)
        peaks.append(None if before is None else _peak() - before)
    return cost._replace(peak=max((peak for peak in peaks if peak is not None), default=None))


def _start_measuring() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the parent is on the same device
    cache_compilations()


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
