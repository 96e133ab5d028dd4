"""A config, built: everything that a run needs."""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from experiments.app import processes
from experiments.app.errors import UserError, user_input
from jaxlocal import data
from jaxlocal.block import Block, BlockState
from jaxlocal.data.progress import progress
from jaxlocal.executors import BlockMetrics, Executor, Placement, TrainState
from jaxlocal.feed import Feed
from jaxlocal.network import Network
from jaxlocal.task import Task
from jaxlocal.variables import RUNNING, Variables, pick, size

Blocks = Sequence[Mapping[str, float]]  # the metrics of each block


class Experiment(NamedTuple):
    """A config, built.

    Attributes:
      config: what it was built from.
      dataset: where the data of steps come from.
      task: what the network is asked for: the data set's, under the config's loss.
      dtype: of the computation.
      network: with the cuts that the rule left.
      blocks: units and objective of each block.
      feed: of the rule.
      optimizer: of every block.
      schedule: step -> learning rate.
      placement: the devices that data go to: all, or those of the first stage.
      stages: the first block of each stage; one stage unless blocks are pipelined.
      executor: the compiled step and evaluation.
      steps_per_epoch: whole batches in the training split.
      num_steps: of the whole run.
      eval_every: steps between evaluations.
      log_every: steps between log lines.
    """

    config: FrozenConfigDict
    dataset: data.Input
    task: Task
    dtype: Any
    network: Network
    blocks: tuple[Block, ...]
    feed: Feed
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    placement: Placement
    stages: tuple[int, ...]
    executor: Executor
    steps_per_epoch: int
    num_steps: int
    eval_every: int
    log_every: int

    @property
    def seeds(self) -> range:
        """Those that are trained together."""
        return range(self.config.seed, self.config.seed + self.config.seeds)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.dataset.example(1).input.shape[1:]

    def at_seed(self, seed: int) -> "Experiment":
        """The same with another first seed: the same programs, the same data.

        Raises:
          UserError: if it is none of 0 to 2^32 - 1.
        """
        if not 0 <= seed <= 2**32 - len(self.seeds):
            raise UserError(f"seed {seed}: choose 0 or more, below 2^32")
        return self._replace(config=FrozenConfigDict({**self.config.to_dict(), "seed": seed}))

    def init(self) -> TrainState:
        """The state before the first step: of the seed, or of all seeds along a leading axis."""
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.dataset.example(1))
        keys = [jax.random.key(seed) for seed in self.seeds]
        with user_input("model"):
            return self.executor.init(keys[0] if len(keys) == 1 else jnp.stack(keys), batch)

    def batches(self, steps: range, resident: Any = None) -> Generator[Any, None, None]:
        """The data of each step; ``resident`` if they are on the devices before. Close it."""
        if resident is None:
            resident = self.dataset.resident(self.placement)
        size = self.config.batch_size
        return _readable(self.dataset.train(self.placement, resident, steps, size, list(self.seeds)))

    def data_of(self, step: int, resident: Any = None) -> Any:
        """The data of one step, on the devices."""
        with closing(self.batches(range(step, step + 1), resident)) as batches:
            return next(batches)

    def whole(self, state: TrainState) -> TrainState:
        """The state as every process can save it."""
        step, key = processes.everywhere((state.step, state.key))
        return TrainState(step, key, self.executor.gather(state.blocks))

    def abstract(self) -> tuple[TrainState, Any]:
        """Shapes and dtypes of the state and of a step's data."""
        shape: tuple[int, ...] = (self.config.batch_size,)
        if self.placement.axis is not None:
            width = len(self.placement.devices)
            shape = (width, self.config.batch_size // width)
        seeds = self.config.seeds
        return jax.eval_shape(self.init), self.dataset.abstract(shape if seeds == 1 else (seeds, *shape))

    @property
    def examples_of_a_device(self) -> int:
        """How many examples of a step each device learns from: the compiler's analyses are of one device."""
        return self.config.batch_size * self.config.seeds // len(self.placement.devices)

    def by_seed(self, metrics: BlockMetrics) -> list[list[dict[str, float]]]:
        """Metrics off the devices: for each seed, for each block."""
        gathered = jax.device_get(self.executor.gather(metrics))
        blocks = [{name: np.atleast_1d(x) for name, x in block.items()} for block in gathered]
        return [[{name: float(x[i]) for name, x in block.items()} for block in blocks] for i in range(len(self.seeds))]

    def evaluate(self, state: TrainState) -> list[list[dict[str, float]]]:
        """For each seed, the metrics of each exit on the whole test split, weighted by the size of each chunk."""
        totals: list[list[dict[str, float]]] = [[{} for _ in self.blocks] for _ in self.seeds]

        def add(count: int, metrics: BlockMetrics) -> None:
            for seed_totals, blocks in zip(totals, self.by_seed(metrics), strict=True):
                for total, block in zip(seed_totals, blocks, strict=True):
                    for name, x in block.items():
                        total[name] = total.get(name, 0.0) + x * count / self.dataset.num_test

        pending: deque[tuple[int, BlockMetrics]] = deque()
        with closing(_readable(self.dataset.test(self.placement, self.config.eval_batch_size))) as chunks:
            number = -(-self.dataset.num_test // self.config.eval_batch_size)
            for count, chunk in progress(chunks, "evaluating", "batch", number):
                pending.append((count, self.executor.evaluate(state, chunk)))
                if len(pending) > 2:  # of the chunks that are under way, each is in memory
                    add(*pending.popleft())
        for counted in pending:
            add(*counted)
        return totals

    def describe(self, state: TrainState) -> dict[str, Any]:
        """Cuts and parameter counts of one seed, for ``config.json`` and the first lines on the terminal.

        Everything but running statistics is counted. The network's own classifier, which is the
        last block's head, counts with the network.
        """

        def counts(block: BlockState) -> dict[str, int]:
            kept = {collection: tree for collection, tree in block.variables.items() if collection != RUNNING}
            own = pick(kept, "head")
            head = size(own) - (size(classifier_of(own)) if block is state.blocks[-1] else 0)
            return {"network": (size(kept) - head) // len(self.seeds), "head": head // len(self.seeds)}

        described = data.Described.of(self.dataset)
        return {
            "units": len(self.network.units),
            "cuts": list(self.network.cuts),
            "stages": list(self.stages),
            "parameters": [counts(block) for block in state.blocks],
            "data": described and described.record(),
            "train_examples": self.dataset.num_train,
            "test_examples": self.dataset.num_test,
            "steps_per_epoch": self.steps_per_epoch,
            "num_steps": self.num_steps,
        }


def classifier_of(head: Variables) -> Variables:
    """The network's own classifier: the last block's head, or what is called ``output`` of it, if it holds more."""
    for name in ("output", "inner"):  # of a sum of objectives, and behind an adapter
        head = pick(head, name) if any(name in tree for tree in head.values()) else head
    return head


def _readable(batches: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """A damaged example ends the program with one line."""
    try:
        yield from batches
    except data.UnreadableError as error:
        raise UserError(str(error)) from error
