"""Contenders on several devices: measured by turns, simulated on more, and reported."""

import contextlib
import math
import multiprocessing
import os
import queue
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.app import processes
from experiments.app.environment import environment
from experiments.app.errors import UserError
from experiments.app.files import write_json
from experiments.app.program import cache_compilations
from experiments.cost.timed import Runner, take_turns
from experiments.drawing import trades
from experiments.drawing.tables import titled
from experiments.recipe import noise
from experiments.training.metrics import counted, metrics_of
from experiments.trials.contenders import Contender, Spec, built, made, measure_profile
from experiments.trials.simulator import Profile, Rate, best_of_backprop, best_of_blocks, data_parallel
from jaxlocal.executors import MIB


def measure(spec: Spec) -> dict[str, Any]:
    """All numbers. Every process has to call it; those of process 0 count."""
    local, backprop = built(spec, spec.rule), built(spec, "backprop")
    batch = noise.batch(local, spec.batch_size)
    print("timing single blocks and units", flush=True)
    profile = measure_profile(local, backprop, batch)
    contenders = [contender for n in spec.devices for contender in made(spec, n, local, backprop, profile, batch)]
    return {
        "spec": spec._asdict(),
        "environment": environment(),
        "profile": profile._asdict(),
        "measured": in_turns(contenders, spec),
        "rate": metrics_of(local).rate,
        "counted": counted(local, spec.batch_size),
    }


def in_turns(contenders: Sequence[Contender], spec: Spec) -> list[dict[str, Any]]:
    """Seconds of an update of each contender, round by round."""

    def runner(contender: Contender) -> Runner:
        def run(steps: int) -> float:
            processes.together("ready")
            began = time.perf_counter()
            contender.turn(steps)
            processes.together("done")
            return time.perf_counter() - began

        return run

    for i, contender in enumerate(contenders):
        print(f"[{i + 1}/{len(contenders)}] compiling {contender.name} on {contender.devices}", flush=True)
        contender.turn(2)
        processes.together("compiled")
    runners = {str(i): runner(contender) for i, contender in enumerate(contenders)}
    rounds = take_turns(runners, dict.fromkeys(runners, spec.steps), spec.rounds)
    return [
        {**contender._asdict(), "turn": None, "seconds": float(np.median(took)), "rounds": took}
        for contender, took in zip(contenders, rounds.values(), strict=True)
    ]


def in_processes(spec: Spec, number: int) -> dict[str, Any]:
    """Measures in so many processes, each with a core of its own.

    Raises:
      UserError: if there are not as many cores, or one of the processes fails.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise UserError(f"this system does not bind processes to cores: set JAX_NUM_CPU_DEVICES={number}")
    cores = sorted(os.sched_getaffinity(0))
    if number > len(cores):
        raise UserError(
            f"--devices={number} on {len(cores)} cores: each device is a core here; JAX_NUM_CPU_DEVICES={number} "
            "makes devices that share cores"
        )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_work, args=(spec, address, number, i, cores[i], results), daemon=True)
        for i in range(number)
    ]
    for worker in workers:
        worker.start()
    while all(worker.is_alive() or worker.exitcode == 0 for worker in workers):
        with contextlib.suppress(queue.Empty):
            found = results.get(timeout=1)
            for worker in workers:
                worker.join()
            return found
    raise UserError("one of the processes that measure has ended, for the reason above")


def _work(spec: Spec, address: str, number: int, index: int, core: int, results: Any) -> None:
    """One process: found out by its XLA, it has one core."""
    os.sched_setaffinity(0, {core})
    cache_compilations()
    processes.connect(address, number, index)
    found = measure(spec)
    if processes.first():
        results.put(found)
    processes.together("measured")


def report(found: dict[str, Any], simulate: Sequence[int], bandwidth: float, workdir: Path) -> None:
    """Writes what was measured, a table of it, a table of more devices, and the picture."""
    write_json(workdir / "scaling.json", found)
    batch, rate, in_a_batch = found["spec"]["batch_size"], found["rate"], found["counted"]
    measured = found["measured"]
    alone = {of["name"]: of for of in measured if of["devices"] == 1}
    rows = []
    for of in measured:
        same = alone[max((name for name in alone if of["name"].startswith(name)), key=len)]
        rule = "backprop" if of["name"].startswith("backprop") else found["spec"]["rule"]
        best = min(one["seconds"] for name, one in alone.items() if name.startswith(rule))
        rows.append(
            {
                "contender": of["name"],
                "devices": str(of["devices"]),
                rate: f"{in_a_batch / of['seconds']:,.1f}",
                "÷ best on one": f"{best / of['seconds']:.2f}",
                "÷ same on one": f"{same['seconds'] / of['seconds']:.2f}",
                "simulated": f"{same['simulated'] / of['simulated']:.2f}",
            }
        )
    text = [titled(rows), ""]
    profile = Profile(**found["profile"])
    profile = profile._replace(bandwidth=bandwidth or profile.bandwidth)
    curves: dict[str, list[tuple[int, float]]] = {}
    if simulate and math.isfinite(profile.bandwidth):
        table, curves = simulated_rows(found, profile, simulate)
        between = f"{profile.bandwidth / 1e9:,.2f} GB/s between devices, every device with a batch of {batch}"
        text += [f"Simulated, {between}:", "", titled(table), ""]
    (workdir / "table.md").write_text("\n".join(text), encoding="utf-8")
    print("\n" + "\n".join(text))
    trades.scaling(curves, workdir / "scaling.png")
    print(f"table: {workdir / 'table.md'}\npicture: {workdir / 'scaling.png'}")


def simulated_rows(
    found: dict[str, Any], profile: Profile, simulate: Sequence[int]
) -> tuple[list[dict[str, str]], dict[str, list[tuple[int, float]]]]:
    """A table of more devices, and its speed-ups over one device of the same, for a picture."""
    spec = found["spec"]
    most = max(spec["microbatches"], default=1)
    blocks, backprop = sum(profile.blocks), sum(profile.units)
    of_blocks, of_units = sum(profile.block_parameters), sum(profile.unit_parameters)
    ways: dict[str, tuple[float, Callable[[int], Rate]]] = {
        f"{spec['rule']}, stages x parts of the batch": (blocks, lambda n: best_of_blocks(profile, n)),
        f"{spec['rule']}, data parallel": (blocks, lambda n: data_parallel(blocks, of_blocks, n, profile.bandwidth)),
        "backprop, data parallel": (backprop, lambda n: data_parallel(backprop, of_units, n, profile.bandwidth)),
        f"backprop, stages x parts, {most} microbatches": (backprop, lambda n: best_of_backprop(profile, n, most)),
    }
    rows = []
    curves: dict[str, list[tuple[int, float]]] = {name: [(1, 1.0)] for name in ways}
    for n in simulate:
        for name, (one, layout) in ways.items():
            rate = layout(n)
            parts_of_batch = n // rate.stages
            speed_up = parts_of_batch * one / rate.seconds
            curves[name].append((n, speed_up))
            rows.append(
                {
                    "devices": str(n),
                    "contender": name,
                    "stages x parts": f"{rate.stages} x {parts_of_batch}",
                    found["rate"]: f"{parts_of_batch * found['counted'] / rate.seconds:,.0f}",
                    "÷ one device": f"{speed_up:,.1f}",
                    "utilisation": f"{rate.utilisation:.2f}",
                    "MiB sent / device and update": f"{rate.sent / MIB:,.1f}",
                }
            )
    return rows, curves
