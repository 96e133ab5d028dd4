"""Which devices a run uses, and how they share its work."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from experiments.app import processes
from experiments.app.errors import UserError, user_input
from jaxlocal.block import Block
from jaxlocal.executors import ONE_DEVICE, DataParallel, OneDevice, Placement, accelerator, block_seconds, described
from jaxlocal.executors.loop import init_state
from jaxlocal.feed import Feed
from jaxlocal.network import cut_balanced
from jaxlocal.objective import Batch


def memory_of(device: str) -> int | None:
    """Bytes that programs may use on a device that is described, or on the one here; None if that is not known."""
    if device:
        return accelerator(device).memory
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def placements(config: FrozenConfigDict, num_blocks: int) -> list[Placement]:
    """The devices of each stage, which are here or described; one stage unless blocks are pipelined.

    Raises:
      UserError: if the devices, the stages and the batch do not go together.
    """
    with user_input("device"):
        devices = described(config.device) if config.device else tuple(jax.devices())
    pipelined = config.executor == "pipelined"
    if config.stages and not pipelined:
        raise UserError(f"stages {config.stages} with executor {config.executor}: only pipelined has stages")
    if jax.process_count() > 1 and not (pipelined or config.data_parallel):
        raise UserError(
            f"{jax.process_count()} processes would train the same: set --config.data_parallel=true or "
            "--config.executor=pipelined, or start one process"
        )
    stages = _num_stages(config, num_blocks, len(devices)) if pipelined else 1
    width = len(devices) // stages if config.data_parallel else 1
    if config.data_parallel and config.seeds > 1:
        raise UserError(f"seeds {config.seeds} with data_parallel: train seeds together on one device, or one by one")
    if config.batch_size % width:
        raise UserError(
            f"batch_size {config.batch_size} does not split evenly over {width} devices: choose a multiple of {width}"
        )
    if not pipelined and not config.data_parallel:
        return [OneDevice(devices[0])] if config.device else [ONE_DEVICE]
    owners, used = ({device.process_index for device in part} for part in (devices, devices[: stages * width]))
    if idle := len(owners - used):
        raise UserError(
            f"{idle} of {len(owners)} processes would have none of the {stages} stages: give "
            "--config.data_parallel=true and --config.stages, more stages, or fewer processes"
        )
    rows = _grid(devices[: stages * width] if width == 1 else devices, stages)
    if config.data_parallel:
        return [DataParallel(row, sync_batch_norm=config.sync_batch_norm) for row in rows]
    return [OneDevice(row[0]) for row in rows]


def _num_stages(config: FrozenConfigDict, num_blocks: int, num_devices: int) -> int:
    if config.data_parallel and not config.stages:
        raise UserError(
            "stages 0 with data_parallel: say in how many stages the devices are to be, as --config.stages=2"
        )
    stages = config.stages or min(num_blocks, num_devices)
    if stages > min(num_blocks, num_devices):
        raise UserError(
            f"stages {stages} of {num_blocks} blocks on {num_devices} devices: each stage has a block and a device "
            "at least"
        )
    if config.data_parallel and num_devices % stages:
        raise UserError(f"stages {stages} do not split {num_devices} devices evenly: choose a divisor")
    return stages


def _grid(devices: Sequence[jax.Device], stages: int) -> list[list[jax.Device]]:
    """A row for each stage. Where each process can have some of every stage, activations stay in the process."""
    processes = [list(group) for _, group in groupby(devices, lambda device: device.process_index)]
    if all(len(group) % stages == 0 for group in processes):
        parts = [np.array(group, dtype=object).reshape(stages, -1) for group in processes]
        return [[device for part in parts for device in part[stage]] for stage in range(stages)]
    return np.array(devices, dtype=object).reshape(stages, -1).tolist()


def starts(
    config: FrozenConfigDict,
    where: Sequence[Placement],
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    example: Batch,
    dtype: Any,
) -> tuple[int, ...]:
    """The first block of each stage but stage 0, so that the slowest stage is as fast as possible.

    Blocks are timed on one device, on what looks like its part of a batch, ``example``, unless there is no choice.
    """
    if len(where) in (1, len(blocks)):
        return tuple(range(1, len(where)))
    if config.device:
        raise UserError(
            f"{len(where)} stages of {len(blocks)} blocks: blocks cannot be timed on device {config.device}, which is "
            "not here; give as many stages as blocks"
        )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    batch = zeros
    if jnp.issubdtype(example.input.dtype, jnp.floating):
        batch = zeros._replace(input=jax.random.normal(jax.random.key(0), example.input.shape, example.input.dtype))
    state = init_state(blocks, feed, optimizer, jax.random.key(0), jax.tree.map(lambda x: x[:1], batch))
    found = cut_balanced(block_seconds(blocks, feed, optimizer, state, batch, dtype), len(where))
    return tuple(int(start) for start in processes.of_first(np.array(found)))  # times differ
