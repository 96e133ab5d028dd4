r"""What more devices bring: data parallelism, blocks in a pipeline, and backprop in the same places.

.. code-block:: shell

    python -m experiments.scaling --model='resnet(depth=32)' --rule=dgl --devices=1,2 --workdir=/tmp/scaling

Batches of an update stay the same; images are random. On a CPU each device is a process with a core of its own, unless
``JAX_NUM_CPU_DEVICES`` makes several of one process, which share all cores. Contenders take turns; among them are the
same stages on one device, so that what more devices bring is told from what smaller programs bring. ``scaling.json``, a
table and a picture go to the workdir, with a simulation of more devices from the times of single blocks and units
(``--simulate``), which is also held against the measured points.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import queue
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import processes
from experiments.build import environment, parse_cuts
from experiments.cli import UserError, cache_compilations, run, user_input
from experiments.model_parallel import ModelParallel, measure_units
from experiments.pictures import scaling as picture
from experiments.record import write_json
from experiments.registry import MODELS, make, make_rule, parse_calls
from experiments.simulator import (
    Profile,
    Rate,
    best_of_backprop,
    best_of_blocks,
    block_parallel,
    data_parallel,
    model_parallel,
)
from experiments.summary import aligned
from jaxlocal.block import Block, make_blocks, params_of
from jaxlocal.data.augment import example_images
from jaxlocal.executors import (
    DataParallel,
    Executor,
    OneDevice,
    Placement,
    TrainState,
    block_seconds,
    fused,
    pipelined,
)
from jaxlocal.executors.data_parallel import is_here
from jaxlocal.executors.loop import init_state
from jaxlocal.executors.pipelined import Link
from jaxlocal.feed import Feed
from jaxlocal.network import Network, activations, cut_balanced
from jaxlocal.objective import Batch
from jaxlocal.task import Task
from jaxlocal.variables import nbytes

OPTIMIZER = optax.sgd(0.01, momentum=0.9, nesterov=True)
MESSAGE = 16 * 2**20  # bytes of what is sent to measure the bandwidth

Turn = Callable[[int], None]  # makes so many updates, and waits for them


class Spec(NamedTuple):
    """What is measured."""

    model: str
    rule: str
    cuts: str
    devices: tuple[int, ...]
    microbatches: tuple[int, ...]
    batch_size: int
    image: int
    classes: int
    rounds: int
    steps: int


class Parts(NamedTuple):
    """A network under a rule.

    Attributes:
      blocks: in order.
      ends: of the blocks, in units.
      feed: of the rule.
    """

    blocks: tuple[Block, ...]
    ends: tuple[int, ...]
    feed: Feed

    def init(self, batch: Batch) -> TrainState:
        """A state on the default device."""
        one_image = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
        return init_state(self.blocks, self.feed, OPTIMIZER, jax.random.key(0), one_image)


class Contender(NamedTuple):
    """A way to train.

    Attributes:
      name: what is trained, and how.
      devices: how many.
      turn: in this process.
      simulated: seconds of an update, from those of single blocks and units.
    """

    name: str
    devices: int
    turn: Turn
    simulated: float


def parts(spec: Spec, rule: str) -> Parts:
    """Builds the blocks of a rule.

    Raises:
      UserError: if model, cuts and rule do not go together.
    """
    (model,), (of_rule,) = parse_calls(spec.model, "model").values(), parse_calls(rule, "rule").values()
    units = make("model", MODELS, model)
    with user_input("--cuts"):
        cuts = parse_cuts(spec.cuts, units)
        if cuts is None:
            costs = activations(units, example_images(1, (spec.image, spec.image, 3)).input)
            cuts = cut_balanced(costs, int(spec.cuts.removeprefix("balanced:")))
        network, local_rule = make_rule(of_rule)(Network(units, cuts), Task(spec.classes))
        return Parts(make_blocks(network, local_rule), (*network.cuts, len(units)), local_rule.feed)


def measure(spec: Spec) -> dict[str, Any]:
    """All numbers. Every process has to call it; those of process 0 count."""
    rng = np.random.default_rng(0)
    image: Any = rng.normal(size=(spec.batch_size, spec.image, spec.image, 3)).astype(np.float32)
    label: Any = rng.integers(0, spec.classes, spec.batch_size, dtype=np.int32)
    batch = Batch(image, label, image)
    local, backprop = parts(spec, spec.rule), parts(spec, "backprop")
    print("timing single blocks and units", flush=True)
    profile = measure_profile(local, backprop, batch)
    contenders = [contender for n in spec.devices for contender in made(spec, n, local, backprop, profile, batch)]
    return {
        "spec": spec._asdict(),
        "environment": environment(),
        "profile": profile._asdict(),
        "measured": in_turns(contenders, spec),
    }


def made(spec: Spec, n: int, local: Parts, backprop: Parts, profile: Profile, batch: Batch) -> list[Contender]:
    """What competes on ``n`` devices, and the same stages on one."""
    devices = jax.devices()[:n]
    single = [OneDevice(device) for device in devices]
    units = np.add(profile.forward, profile.backward).tolist()
    contenders = []

    def contend(name: str, placements: Sequence[Placement], turn: Callable[[], Turn], simulated: float) -> None:
        used = {device for placement in placements for device in placement.devices}
        here = any(map(is_here, placements))
        contenders.append(Contender(name, len(used), turn() if here else idle, simulated))

    for rule, of, seconds, size in (
        (spec.rule, local, sum(profile.blocks), sum(profile.block_parameters)),
        ("backprop", backprop, sum(units), sum(profile.unit_parameters)),
    ):
        ways: dict[str, Placement] = {"": single[0]}
        if n > 1:
            mappings = ["shard_map"] if jax.process_count() > 1 else ["pmap", "shard_map"]
            ways = {f", data parallel by {m}": DataParallel(devices, m) for m in mappings}  # type: ignore[arg-type]
        for way, placement in ways.items():
            executor = functools.partial(fused, of.blocks, of.feed, OPTIMIZER, placement=placement)
            simulated = data_parallel(seconds / n, size, n, profile.bandwidth).seconds if n > 1 else seconds
            contend(f"{rule}{way}", [placement], functools.partial(turns_of, executor, placement, batch), simulated)
    if 1 < n <= len(local.blocks):
        starts = cut_balanced(profile.blocks, n)
        simulated = block_parallel(profile, starts).seconds
        for stages, seconds in (([single[0]] * n, sum(profile.blocks)), (single, simulated)):
            executor = functools.partial(
                pipelined, local.blocks, local.feed, OPTIMIZER, placements=stages, starts=starts
            )
            turn = functools.partial(turns_of, executor, stages[0], batch)
            contend(f"{spec.rule}, {n} stages", stages, turn, seconds)
    if 1 < n <= len(units):
        starts = cut_balanced(units, n)
        for m in (1, *spec.microbatches):
            simulated = model_parallel(profile, starts, m).seconds
            name = f"backprop, {n} stages" + (f", {m} microbatches" if m > 1 else "")
            for stages, seconds in (([single[0]] * n, sum(units)), (single, simulated)):
                parallel = functools.partial(ModelParallel, backprop.blocks[0], OPTIMIZER, stages, starts, m)
                contend(name, stages, functools.partial(turns_of_stages, parallel, backprop, batch), seconds)
    return contenders


def measure_profile(local: Parts, backprop: Parts, batch: Batch) -> Profile:
    """On the first device of every process; the numbers are those of process 0."""
    on_device = jax.tree.map(jnp.asarray, batch)
    state = local.init(batch)
    blocks = block_seconds(local.blocks, local.feed, OPTIMIZER, state, on_device)
    units = measure_units(backprop.blocks[0], OPTIMIZER, backprop.init(batch).blocks[0], on_device)
    found = Profile(
        blocks=list(blocks),
        block_parameters=[nbytes(params_of(block)) for block in state.blocks],
        block_outputs=[units.outputs[end - 1] + nbytes(batch) for end in local.ends],
        forward=units.forward,
        backward=units.backward,
        unit_parameters=units.parameters,
        unit_outputs=units.outputs,
        bandwidth=measure_bandwidth(),
    )
    return jax.tree.map(lambda x: type(x)(processes.of_first(np.asarray(x, np.float32))), found)


def measure_bandwidth() -> float:
    """Bytes a second between the first two devices; infinite if there is one."""
    if jax.device_count() == 1:
        return math.inf
    ends = [OneDevice(device) for device in jax.devices()[:2]]
    link, message = Link(*ends), ends[0].replicate(np.ones(MESSAGE // 4, np.float32))
    took = []
    for _ in range(6):
        processes.together("ready")
        began = time.perf_counter()
        jax.block_until_ready(link(message, None))
        processes.together("arrived")
        took.append(time.perf_counter() - began)
    return MESSAGE / float(np.median(took[1:]))


def idle(steps: int) -> None:
    """The turn of a process that has no part in it."""


def turns_of(make: Callable[[], Executor], placement: Placement, batch: Batch) -> Turn:
    """Of an executor whose data go to ``placement``."""
    executor = make()
    state = executor.init(jax.random.key(0), jax.tree.map(lambda x: jnp.asarray(x[:1]), batch))
    mine = placement.positions(len(batch.label))
    data = placement.spread(jax.tree.map(lambda x: x[mine], batch), 0)

    def turn(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = executor.step(state, data)
        jax.block_until_ready(state)

    return turn


def turns_of_stages(make: Callable[[], ModelParallel], backprop: Parts, batch: Batch) -> Turn:
    """Of backprop in stages."""
    stages = make()
    states, microbatches = stages.init(backprop.init(batch).blocks[0], batch)

    def turn(steps: int) -> None:
        nonlocal states
        for _ in range(steps):
            states, _ = stages.step(states, microbatches)
        jax.block_until_ready(states)

    return turn


def in_turns(contenders: Sequence[Contender], spec: Spec) -> list[dict[str, Any]]:
    """Seconds of an update of each contender, round by round."""
    for i, contender in enumerate(contenders):
        print(f"[{i + 1}/{len(contenders)}] compiling {contender.name} on {contender.devices}", flush=True)
        contender.turn(2)
        processes.together("compiled")
    rounds: list[list[float]] = [[] for _ in contenders]
    for i in range(spec.rounds):
        for took, contender in zip(rounds, contenders, strict=True):
            processes.together("ready")
            began = time.perf_counter()
            contender.turn(spec.steps)
            processes.together("done")
            took.append((time.perf_counter() - began) / spec.steps)
        print(f"round {i + 1} of {spec.rounds}", flush=True)
    return [
        {**c._asdict(), "turn": None, "seconds": float(np.median(took)), "rounds": took}
        for c, took in zip(contenders, rounds, strict=True)
    ]


def in_processes(spec: Spec, number: int) -> dict[str, Any]:
    """Measures in so many processes, each with a core of its own.

    Raises:
      UserError: if there are not as many cores, or one of the processes fails.
    """
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
    batch = found["spec"]["batch_size"]
    measured = found["measured"]
    alone = {of["name"]: of for of in measured if of["devices"] == 1}
    rows: list[Sequence[str]] = [("contender", "devices", "img/s", "÷ best on one", "÷ same on one", "simulated")]
    for of in measured:
        same = alone[max((name for name in alone if of["name"].startswith(name)), key=len)]
        rule = "backprop" if of["name"].startswith("backprop") else found["spec"]["rule"]
        best = min(one["seconds"] for name, one in alone.items() if name.startswith(rule))
        rows.append(
            (
                of["name"],
                str(of["devices"]),
                f"{batch / of['seconds']:,.1f}",
                f"{best / of['seconds']:.2f}",
                f"{same['seconds'] / of['seconds']:.2f}",
                f"{same['simulated'] / of['simulated']:.2f}",
            )
        )
    text = [aligned(rows), ""]
    profile = Profile(**found["profile"])
    profile = profile._replace(bandwidth=bandwidth or profile.bandwidth)
    curves: dict[str, list[tuple[int, float]]] = {}
    if simulate and math.isfinite(profile.bandwidth):
        table, curves = simulated_rows(found["spec"], profile, simulate)
        between = f"{profile.bandwidth / 1e9:,.2f} GB/s between devices, every device with a batch of {batch}"
        text += [f"Simulated, {between}:", "", aligned(table), ""]
    (workdir / "table.md").write_text("\n".join(text))
    print("\n" + "\n".join(text))
    picture(curves, workdir / "scaling.png")
    print(f"table: {workdir / 'table.md'}\npicture: {workdir / 'scaling.png'}")


def simulated_rows(
    spec: dict[str, Any], profile: Profile, simulate: Sequence[int]
) -> tuple[list[Sequence[str]], dict[str, list[tuple[int, float]]]]:
    """A table of more devices, and its speed-ups over one device of the same, for a picture."""
    units = [a + b for a, b in zip(profile.forward, profile.backward, strict=True)]
    most = max(spec["microbatches"], default=1)
    blocks, backprop = sum(profile.blocks), sum(units)
    ways: dict[str, tuple[float, Callable[[int], Rate]]] = {
        f"{spec['rule']}, stages x parts of the batch": (blocks, lambda n: best_of_blocks(profile, n)),
        f"{spec['rule']}, data parallel": (
            blocks,
            lambda n: data_parallel(blocks, sum(profile.block_parameters), n, profile.bandwidth),
        ),
        "backprop, data parallel": (
            backprop,
            lambda n: data_parallel(backprop, sum(profile.unit_parameters), n, profile.bandwidth),
        ),
        f"backprop, stages x parts, {most} microbatches": (backprop, lambda n: best_of_backprop(profile, n, most)),
    }
    rows: list[Sequence[str]] = [
        (
            "devices",
            "contender",
            "stages x parts",
            "img/s",
            "÷ one device",
            "utilisation",
            "MiB sent / device and update",
        )
    ]
    curves: dict[str, list[tuple[int, float]]] = {name: [(1, 1.0)] for name in ways}
    for n in simulate:
        for name, (one, layout) in ways.items():
            rate = layout(n)
            parts_of_batch = n // rate.stages
            speed_up = parts_of_batch * one / rate.seconds
            curves[name].append((n, speed_up))
            rows.append(
                (
                    str(n),
                    name,
                    f"{rate.stages} x {parts_of_batch}",
                    f"{parts_of_batch * spec['batch_size'] / rate.seconds:,.0f}",
                    f"{speed_up:,.1f}",
                    f"{rate.utilisation:.2f}",
                    f"{rate.sent / 2**20:,.1f}",
                )
            )
    return rows, curves


def main(argv: Sequence[str]) -> int:
    """Measures, then reports."""
    del argv
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: a directory for the measurements")
    workdir = Path(_WORKDIR.value)
    with user_input("--devices, --microbatches, --simulate"):
        devices, microbatches, simulate = (
            tuple(sorted({int(n) for n in text.split(",") if n}))
            for text in (_DEVICES.value, _MICROBATCHES.value, _SIMULATE.value)
        )
        if min((*devices, *microbatches, *simulate)) < 1:
            raise ValueError("give whole numbers from 1 up")
    for n in {*devices, *microbatches}:
        if _BATCH.value % n:
            raise UserError(f"--batch_size={_BATCH.value} does not split into {n} equal parts")
    spec = Spec(
        _MODEL.value,
        _RULE.value,
        _CUTS.value,
        tuple(sorted({1, *devices})),
        microbatches,
        _BATCH.value,
        _IMAGE.value,
        _CLASSES.value,
        _ROUNDS.value,
        _STEPS.value,
    )
    parts(spec, spec.rule)  # says what is wrong with them
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        found = in_processes(spec, max(spec.devices))
    elif max(spec.devices) > jax.device_count():
        raise UserError(f"--devices={max(spec.devices)}: this machine has {jax.device_count()}")
    else:
        found = measure(spec)
    report(found, simulate, _BANDWIDTH.value * 1e9, workdir)
    return 0


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _MODEL = flags.DEFINE_string("model", "resnet(depth=32)", "Model, as a call.")
    _RULE = flags.DEFINE_string("rule", "dgl", "Rule, as a call.")
    _CUTS = flags.DEFINE_string("cuts", "all", "Cuts of the rule.")
    _DEVICES = flags.DEFINE_string("devices", "1,2", "Numbers of devices.")
    _MICROBATCHES = flags.DEFINE_string("microbatches", "4,8", "In how many parts backprop's pipeline takes a batch.")
    _BATCH = flags.DEFINE_integer("batch_size", 128, "Examples of an update.", lower_bound=1)
    _IMAGE = flags.DEFINE_integer("image", 32, "Side of the images.", lower_bound=1)
    _CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes.", lower_bound=1)
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each contender.", lower_bound=1)
    _STEPS = flags.DEFINE_integer("steps", 8, "Updates in a turn.", lower_bound=1)
    _SIMULATE = flags.DEFINE_string("simulate", "8,16,32,64,128,256,512,1024", "Numbers of devices to simulate.")
    _BANDWIDTH = flags.DEFINE_float(
        "bandwidth", 0, "GB/s between simulated devices; 0 for what is here.", lower_bound=0
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where measurements, table and picture go.")
    run(main)
