"""What every executor shares: the training state and the interface."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

from jaxlocal.executors.compiler import uncached
from jaxlocal.executors.operations import operations
from jaxlocal.objective import Batch
from jaxlocal.variables import Key, abstract

BlockMetrics = tuple[dict[str, jax.Array], ...]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and the key that all randomness follows from.

    Fields are not checked at run time: JAX fills pytrees with abstract values too.

    Attributes:
      step: scalar int32, updates done so far.
      key: typed PRNG key; no step changes it. Step t draws from ``fold_in(key, t)``.
      blocks: one :class:`jaxlocal.block.BlockState` per block.
    """

    step: Any
    key: Any
    blocks: Any


class Program(NamedTuple):
    """One compiled program of a step.

    Attributes:
      what: what it does.
      times: how often a step runs it; blocks of equal structure share a program.
      lowered: ready to be compiled.
      devices: for which.
      resident: bytes on the device when it starts: its arguments, and everything else that waits there.
      flops: counts its floating-point operations, as it is written; lowers it once more.
    """

    what: str
    times: int
    lowered: jax.stages.Lowered
    devices: tuple[jax.Device, ...]
    resident: int
    flops: Callable[[], float]

    @classmethod
    def of(cls, what: str, program: Any, args: Any, resident: int, times: int = 1) -> "Program":
        """Of a program that a placement made, and what it is called with; abstract values will do."""
        shapes = jax.tree.map(abstract, args)

        lowered, flops = program.lower(*args), lambda: operations(program.trace(*shapes))
        return cls(what, times, lowered, program.devices, resident, flops)

    def compile(self) -> jax.stages.Compiled:
        """By the compiler of its device."""
        with uncached():
            return self.lowered.compile()


class Executor(NamedTuple):
    """How blocks are run.

    Attributes:
      init: ``(key, batch) -> state``; the key is typed, ``jax.random.key(seed)``, and of the
        batch one image will do. Several seeds that train together take an array of keys.
      step: ``(state, data) -> (state, metrics)``, the data as the placement spreads them. The old state is used
        up: do not use it again. Metrics are scalars by name, one dict per block: ``loss``, what the objective
        reports, and ``finite``: 1, or 0 where the block kept its state (:func:`jaxlocal.block.update`).
      evaluate: ``(state, data) -> metrics`` at every exit, on running statistics.
      programs: ``(state, data) -> programs`` of a step, in the order in which they first run. Abstract
        values will do.
      place: ``(state) -> state``, of one that is whole in this process; every block goes where it is computed with.
      gather: what ``blocks`` of a state, or metrics, hold of blocks that belong to other processes is brought here.
    """

    init: Callable[[Key, Batch], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, BlockMetrics]]
    evaluate: Callable[[TrainState, Any], BlockMetrics]
    programs: Callable[[TrainState, Any], tuple[Program, ...]]
    place: Callable[[TrainState], TrainState] = lambda state: state
    gather: Callable[[Any], Any] = lambda of_blocks: of_blocks


def as_batch(data: Batch, key: Key, *, train: bool) -> Batch:
    """The :class:`Prepare` of data that is a batch already."""
    del key, train
    return data
