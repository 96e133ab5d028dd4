"""Ways to train on several devices, and the profile that they are simulated from."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.app import processes
from experiments.app.calls import parse_call
from experiments.cost.timed import repeated
from experiments.recipe.build import build, changed
from experiments.recipe.experiment import Experiment
from experiments.recipe.noise import noise
from experiments.trials.simulator import Profile, block_parallel, data_parallel, model_parallel
from jaxlocal.block import params_of
from jaxlocal.executors import DataParallel, Executor, OneDevice, Placement, TrainState, block_seconds, fused, pipelined
from jaxlocal.executors.data_parallel import is_here
from jaxlocal.executors.link import Link
from jaxlocal.executors.loop import init_state
from jaxlocal.executors.model_parallel import ModelParallel, measure_units
from jaxlocal.network import cut_balanced
from jaxlocal.objective import Batch
from jaxlocal.variables import nbytes

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


def built(spec: Spec, rule: str) -> Experiment:
    """The network under a rule. Of several processes each has it whole.

    Raises:
      UserError: if model, cuts and rule do not go together.
    """
    config = noise(parse_call(spec.model, "model"), spec.image, spec.classes, max(1024, spec.batch_size))
    several, called = jax.process_count() > 1, parse_call(rule, "rule")
    return build(changed(config, rule=called, cuts=spec.cuts, batch_size=spec.batch_size, data_parallel=several))


def state_of(experiment: Experiment, batch: Batch) -> TrainState:
    """A state on the default device."""
    one = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
    return init_state(experiment.blocks, experiment.feed, experiment.optimizer, jax.random.key(0), one)


def made(
    spec: Spec, n: int, local: Experiment, backprop: Experiment, profile: Profile, batch: Batch
) -> list[Contender]:
    """What competes on ``n`` devices, and the same stages on one."""
    devices = jax.devices()[:n]
    single = [OneDevice(device) for device in devices]
    units = profile.units
    contenders = []

    def contend(name: str, placements: Sequence[Placement], turn: Callable[[], Turn], simulated: float) -> None:
        used = {device for placement in placements for device in placement.devices}
        here = any(map(is_here, placements))  # else the process has no part in it
        contenders.append(Contender(name, len(used), turn() if here else lambda steps: None, simulated))

    for rule, of, seconds, size in (
        (spec.rule, local, sum(profile.blocks), sum(profile.block_parameters)),
        ("backprop", backprop, sum(units), sum(profile.unit_parameters)),
    ):
        ways: dict[str, Placement] = {"": single[0]}
        if n > 1:
            mappings = ["shard_map"] if jax.process_count() > 1 else ["pmap", "shard_map"]
            ways = {f", data parallel by {m}": DataParallel(devices, m) for m in mappings}  # type: ignore[arg-type]
        for way, placement in ways.items():
            executor = functools.partial(fused, of.blocks, of.feed, of.optimizer, placement=placement)
            simulated = data_parallel(seconds / n, size, n, profile.bandwidth).seconds if n > 1 else seconds
            contend(f"{rule}{way}", [placement], functools.partial(turns_of, executor, placement, batch), simulated)
    if 1 < n <= len(local.blocks):
        starts = cut_balanced(profile.blocks, n)
        simulated = block_parallel(profile, starts).seconds
        for stages, seconds in (([single[0]] * n, sum(profile.blocks)), (single, simulated)):
            executor = functools.partial(
                pipelined, local.blocks, local.feed, local.optimizer, placements=stages, starts=starts
            )
            turn = functools.partial(turns_of, executor, stages[0], batch)
            contend(f"{spec.rule}, {n} stages", stages, turn, seconds)
    if 1 < n <= len(units):
        starts = cut_balanced(units, n)
        for m in (1, *spec.microbatches):
            simulated = model_parallel(profile, starts, m).seconds
            name = f"backprop, {n} stages" + (f", {m} microbatches" if m > 1 else "")
            for stages, seconds in (([single[0]] * n, sum(units)), (single, simulated)):
                parallel = functools.partial(ModelParallel, backprop.blocks[0], backprop.optimizer, stages, starts, m)
                contend(name, stages, functools.partial(turns_of_stages, parallel, backprop, batch), seconds)
    return contenders


def measure_profile(local: Experiment, backprop: Experiment, batch: Batch) -> Profile:
    """On the first device of every process; the numbers are those of process 0."""
    on_device = jax.tree.map(jnp.asarray, batch)
    state = state_of(local, batch)
    blocks = block_seconds(local.blocks, local.feed, local.optimizer, state, on_device)
    units = measure_units(backprop.blocks[0], backprop.optimizer, state_of(backprop, batch).blocks[0], on_device)
    ends = (*local.network.cuts, len(local.network.units))
    found = Profile(
        blocks=list(blocks),
        block_parameters=[nbytes(params_of(block)) for block in state.blocks],
        block_outputs=[units.outputs[end - 1] + nbytes(batch) for end in ends],
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


def turns_of(make: Callable[[], Executor], placement: Placement, batch: Batch) -> Turn:
    """Of an executor whose data go to ``placement``."""
    executor = make()
    state = executor.init(jax.random.key(0), jax.tree.map(lambda x: jnp.asarray(x[:1]), batch))
    mine = placement.positions(len(batch.label))
    return repeated(executor.step, state, placement.spread(jax.tree.map(lambda x: x[mine], batch), 0))


def turns_of_stages(make: Callable[[], ModelParallel], backprop: Experiment, batch: Batch) -> Turn:
    """Of backprop in stages."""
    stages = make()
    return repeated(stages.step, *stages.init(state_of(backprop, batch).blocks[0], batch))
