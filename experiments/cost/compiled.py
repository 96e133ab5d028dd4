"""What a step takes, and what its blocks and units do, by the compiler's analysis: nothing is run, or in memory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.cost.cutter import Cutter
from experiments.recipe.experiment import Experiment
from jaxlocal.block import Block
from jaxlocal.executors import Cost, OneDevice, Program, accelerator, cost_of, streamed
from jaxlocal.executors.cost import Analysis
from jaxlocal.feed import chain
from jaxlocal.network import kind_of
from jaxlocal.objective import Batch, Carry, ObjectiveOut, headless, no_sync
from jaxlocal.variables import Key, Variables, abstract, nbytes, pick, size

_known: dict[str, Analysis] = {}  # of this process: candidates of a search have most of their programs in common


class Measured(NamedTuple):
    """An experiment, and what its step takes.

    Attributes:
      experiment: built; nothing of it is in memory, but for its data set.
      cost: of the step's own programs, compiled.
      data: bytes of the training split.
      state: bytes of all blocks.
    """

    experiment: Experiment
    cost: Cost
    data: int
    state: int

    @property
    def cuts(self) -> tuple[int, ...]:
        """Those that the rule left."""
        return self.experiment.network.cuts

    @property
    def blocks(self) -> str:
        """How many there are, in words."""
        return f"{len(self.cuts) + 1} block{'s' if self.cuts else ''}"


def measure(experiment: Experiment) -> Measured:
    """Compiles the programs of a step, from abstract values alone."""
    state, batch = experiment.abstract()
    resident = resident_bytes(experiment, batch)
    cost = cost_of(experiment.executor.programs(state, batch), experiment.examples_of_a_device, _known)
    ahead = experiment.dataset.ahead * (nbytes(batch) - resident) // len(experiment.placement.devices)
    cost = cost._replace(total=cost.total + ahead, resident=cost.resident + ahead)
    return Measured(experiment, cost, resident, nbytes(state.blocks))


def bound(experiment: Experiment, cost: Cost) -> float | None:
    """Seconds that a step takes at least on the device that the config describes; None without one.

    It is the longer of its operations at the device's highest rate, and, where they are known, the bytes that are moved
    at its memory's. No program reaches either.
    """
    config = experiment.config
    if not config.device:
        return None
    of = accelerator(config.device)
    operations = cost.flops * experiment.examples_of_a_device / getattr(of, config.dtype)
    return max(operations, (cost.moved or 0.0) / of.bandwidth)


def resident_bytes(experiment: Experiment, batch: Any) -> int:
    """Bytes of what all steps share in a step's data."""

    def shared(axis: int | None, part: Any) -> Any:
        return part if axis is None else None

    return nbytes(jax.tree.map(shared, experiment.dataset.batch_axes, batch, is_leaf=lambda axis: axis is None))


def lowered_flops(experiment: Experiment) -> float:
    """Floating-point operations per example of the step before it is compiled: quick, and near enough to compare."""
    programs = experiment.executor.programs(*experiment.abstract())
    return sum(program.times * program.flops() for program in programs) / experiment.examples_of_a_device


class UnitCost(NamedTuple):
    """A unit as a block of its own, with its head.

    Attributes:
      kind: the unit's type.
      output: its shape, without the batch.
      temporaries: bytes.
      unit: floating-point operations per example, of the update without the head.
      head: likewise, of the head.
      parameters: numbers that the head learns.
    """

    kind: str
    output: tuple[int, ...]
    temporaries: int
    unit: float
    head: float
    parameters: int


class BlockCost(NamedTuple):
    """A block's update as a program of its own; in the units of :class:`UnitCost`."""

    temporaries: int
    units: float
    head: float
    parameters: int


def unit_costs(experiment: Experiment, cutter: Cutter) -> tuple[UnitCost, ...]:
    """Each unit as a block of its own; units that the rule never ends a block with have a classifier for a head.

    The cutter knows the heads: the experiment may be of any rule on the same network.
    """
    optimizer = optax.sgd(0.1)  # one, so that equals are traced once
    batch = experiment.dataset.example(experiment.config.batch_size)
    carry: Carry = batch.input
    found: list[UnitCost] = []
    known: dict[Any, tuple[UnitCost, Carry]] = {}  # by structure: what it costs, and its output

    for unit, head in zip(cutter.units, cutter.heads, strict=True):
        block = Block((unit,), head._replace(sync=no_sync), cutter.remat)
        same = (block, carry.shape, carry.dtype)
        if same not in known:
            cost, out = _cost(experiment, block, carry, batch, optimizer)
            known[same] = UnitCost(kind_of(unit), out.shape[1:], *cost), abstract(out)
        found.append(known[same][0])
        carry = known[same][1]
    return tuple(found)


def block_costs(experiment: Experiment) -> tuple[BlockCost, ...]:
    """Each block of one seed as a program of its own, as the streamed executor compiles it; nothing is run.

    What a block looks at of the next one (MAN) is left out.
    """
    batch, key = experiment.dataset.example(experiment.config.batch_size), jax.random.key(0)
    found: list[BlockCost] = []
    carry: Carry = None
    for i, block in enumerate(experiment.blocks):
        carry = jax.eval_shape(functools.partial(experiment.feed, i, train=True), carry, batch, key)
        block = block._replace(objective=block.objective._replace(sync=no_sync))
        cost, carry = _cost(experiment, block, carry, batch, experiment.optimizer)
        found.append(cost)
    return tuple(found)


def _cost(
    experiment: Experiment, block: Block, carry: Carry, batch: Any, optimizer: optax.GradientTransformation
) -> tuple[BlockCost, Any]:
    """What the update of a block takes as the first of a network, on inputs like ``carry``; and what it puts out."""
    fed, where = batch._replace(input=carry), OneDevice(experiment.placement.devices[0])

    def program(block: Block) -> tuple[Program, Variables]:
        executor = streamed((block,), chain(), optimizer, dtype=experiment.dtype, placement=where)
        state = jax.eval_shape(executor.init, jax.random.key(0), fed)
        return executor.programs(state, fed)[-1], state.blocks[0].variables

    (whole, variables), b = program(block), batch.label.shape[0]
    of, own = cost_of([whole], b, _known), program(block._replace(objective=_NO_HEAD))[0].flops() / b
    parameters = size(pick({"params": variables["params"]}, "head"))
    return BlockCost(of.temporaries, own, of.flops - own, parameters), whole.lowered.out_info[1]


def _silent(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
    del variables, batch, key, train
    floating = [x for x in jax.tree.leaves(carry) if jnp.issubdtype(x.dtype, jnp.floating)]
    return ObjectiveOut(sum((jnp.mean(x.astype(jnp.float32)) for x in floating), jnp.zeros(())), {}, {}, None)


_NO_HEAD = headless(_silent)
