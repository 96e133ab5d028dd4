"""What many devices would make of measured times: a simulation of pipelines, event by event."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from jaxlocal.network import cut_balanced


class Profile(NamedTuple):
    """What single blocks and units take on one device, and a message between two.

    Attributes:
      blocks: seconds of each block's update.
      block_parameters: bytes, with its head's.
      block_outputs: bytes that a block sends to the next, with the batch that goes along.
      forward: seconds of each unit under backprop.
      backward: likewise, with the unit's update.
      unit_parameters: bytes.
      unit_outputs: bytes that a unit sends to the next; a gradient has as many.
      bandwidth: bytes a second.
    """

    blocks: list[float]
    block_parameters: list[int]
    block_outputs: list[int]
    forward: list[float]
    backward: list[float]
    unit_parameters: list[int]
    unit_outputs: list[int]
    bandwidth: float

    @property
    def units(self) -> list[float]:
        """Seconds of each unit, forward and backward."""
        return [a + b for a, b in zip(self.forward, self.backward, strict=True)]


class Rate(NamedTuple):
    """What a layout of devices comes to.

    Attributes:
      seconds: between two updates.
      utilisation: share of the time in which devices compute, averaged over them.
      sent: bytes that a device sends for an update, averaged over them.
      stages: in which the devices are; the rest is data parallel.
    """

    seconds: float
    utilisation: float
    sent: float
    stages: int = 1


def data_parallel(seconds: float, parameters: float, devices: int, bandwidth: float) -> Rate:
    """Every device computes ``seconds``, then gradients are averaged in a ring; nothing overlaps."""
    sent = _ring(parameters, devices)
    whole = seconds + sent / bandwidth
    return Rate(whole, seconds / whole, sent)


def block_parallel(profile: Profile, starts: Sequence[int], width: int = 1) -> Rate:
    """Batches that follow each other forward through stages of blocks.

    Args:
      profile: of the blocks, at the batch of one device.
      starts: the first block of each stage but stage 0.
      width: devices in a stage, which average its gradients.
    """
    stages, parameters, moved = _stages(profile.blocks, profile.block_parameters, profile.block_outputs, starts)
    rings = [_ring(size, width) for size in parameters]
    free, links = [0.0] * len(stages), [0.0] * len(stages)
    done = []
    for _ in range(10 * len(stages) + 10):
        arrived = 0.0
        for s, seconds in enumerate(stages):
            free[s] = max(free[s], arrived) + seconds + rings[s] / profile.bandwidth
            arrived = links[s] = max(links[s], free[s]) + moved[s] / profile.bandwidth
        done.append(free[-1])
    half = len(done) // 2
    return _rate((done[-1] - done[half - 1]) / (len(done) - half), stages, sum(moved) + sum(rings))


def model_parallel(profile: Profile, starts: Sequence[int], microbatches: int = 1, width: int = 1) -> Rate:
    """Backprop through stages of units: all microbatches forward, then all backward, then the next update.

    Args:
      profile: of the units, at the batch of one device.
      starts: the first unit of each stage but stage 0.
      microbatches: that a batch is split into.
      width: devices in a stage, which average its gradients.
    """
    forward, parameters, moved = _stages(profile.forward, profile.unit_parameters, profile.unit_outputs, starts)
    backward, *_ = _stages(profile.backward, profile.unit_parameters, profile.unit_outputs, starts)
    rings = [_ring(size, width) for size in parameters]
    moves = [size / profile.bandwidth / microbatches for size in moved]
    free, links = [0.0] * len(forward), [0.0] * len(forward)
    for _ in range(microbatches):
        arrived = 0.0
        for s, seconds in enumerate(forward):
            free[s] = max(free[s], arrived) + seconds / microbatches
            arrived = links[s] = max(links[s], free[s]) + moves[s]
    for _ in range(microbatches):
        arrived = 0.0
        for s in reversed(range(len(backward))):
            free[s] = max(free[s], arrived) + backward[s] / microbatches
            arrived = links[s - 1] = max(links[s - 1], free[s]) + moves[s - 1]
    seconds = max(at + ring / profile.bandwidth for at, ring in zip(free, rings, strict=True))
    return _rate(seconds, [a + b for a, b in zip(forward, backward, strict=True)], 2 * sum(moved) + sum(rings))


def best_of_blocks(profile: Profile, devices: int) -> Rate:
    """The grid of stages and parts of the batch with most throughput; every device has a batch of its own."""
    return _best(profile.blocks, devices, lambda starts, width: block_parallel(profile, starts, width))


def best_of_backprop(profile: Profile, devices: int, microbatches: int) -> Rate:
    """Likewise, of backprop in stages."""
    return _best(profile.units, devices, lambda starts, width: model_parallel(profile, starts, microbatches, width))


def _best(costs: Sequence[float], devices: int, layout: Callable[[Sequence[int], int], Rate]) -> Rate:
    numbers = [n for n in range(1, len(costs) + 1) if devices % n == 0]
    rates = (layout(cut_balanced(costs, n), devices // n) for n in numbers)
    return max(rates, key=lambda rate: devices // rate.stages / rate.seconds)


def _stages(
    seconds: Sequence[float], parameters: Sequence[float], outputs: Sequence[float], starts: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    """Seconds, bytes of parameters and bytes sent on, of each stage; the last one sends nothing on."""
    bounds = list(pairwise((0, *starts, len(seconds))))
    sent = [float(outputs[end - 1]) for _, end in bounds[:-1]]
    return [sum(seconds[a:b]) for a, b in bounds], [sum(parameters[a:b]) for a, b in bounds], [*sent, 0.0]


def _ring(size: float, devices: int) -> float:
    """Bytes that each device of a ring sends to average so many."""
    return 2 * (devices - 1) / devices * size


def _rate(seconds: float, stages: Sequence[float], sent: float) -> Rate:
    n = len(stages)
    return Rate(seconds, sum(stages) / n / seconds, sent / n, n)
