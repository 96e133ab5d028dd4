"""A run that was trained: restored as it is, or as what another run starts from."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.app.errors import UserError, user_input
from experiments.recipe.build import build, changed, rebuilt
from experiments.recipe.experiment import Experiment
from experiments.recipe.fields import check_fields
from experiments.training.checkpoint import Checkpoints
from experiments.training.workdir import load_config, load_record
from jaxlocal import data
from jaxlocal.block import Block, BlockState
from jaxlocal.executors import TrainState
from jaxlocal.rules.adapt import adopted
from jaxlocal.variables import Variables, alike, merge, nest, pick

_HINT = "say where that one is by --data_dir (from Python: with_data(dataset=...))"


class Trained(NamedTuple):
    """A run, restored.

    Attributes:
      experiment: for the devices of this program.
      step: of the checkpoint.
      state: what it holds.
    """

    experiment: Experiment
    step: int
    state: TrainState

    def with_data(self, data_dir: str = "", dataset: data.Input | None = None) -> "Trained":
        """The same with its data set, for whatever looks at examples of it.

        Args:
          data_dir: where it is now, if not where the config says.
          dataset: itself, if it is none that a config can name.

        Raises:
          UserError: if that is missing, or another one than the run's.
        """
        config = self.experiment.config
        experiment = build(changed(config, data_dir=data_dir or config.data_dir), dataset)
        theirs, ours = ((of.task.num_classes, of.input_shape) for of in (self.experiment, experiment))
        if theirs != ours:
            (k, shape), (n, other) = theirs, ours
            raise UserError(
                f"data set {config.dataset} has {n} classes of {other}, the run's had {k} of {shape}: {_HINT}"
            )
        kept, found = (getattr(of.dataset, "vocabulary", None) for of in (self.experiment, experiment))
        if kept != found:
            raise UserError(f"{experiment.config.dataset} has another vocabulary than the run's: give the text it had")
        marks = self.experiment.dataset.fingerprint, experiment.dataset.fingerprint
        if all(marks) and marks[0] != marks[1]:
            raise UserError(f"data set {experiment.config.dataset} holds other examples than the run's had: {_HINT}")
        return self._replace(experiment=experiment)

    def one_seed(self) -> "Trained":
        """The first seed, of those that were trained together."""
        if len(self.experiment.seeds) == 1:
            return self
        return Trained(rebuilt(self.experiment, seeds=1), self.step, jax.tree.map(lambda x: x[0], self.state))


def restore(workdir: Path, which: str = "last") -> Trained:
    """Restores the ``last`` or the ``best`` checkpoint of a run. No data set is loaded.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    config, record = load_config(workdir), load_record(workdir).get("about", {}).get("data")
    check_fields(config)
    with user_input(f"{workdir / 'config.json'} is damaged (about.data)"):
        described = None if record is None else data.Described.read(record)  # older runs do not say
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {workdir}: train it first")
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.step(which)
        if step is None:
            raise UserError(f"no {which} checkpoint in {workdir}: train it first")
        if config.executor in ("pipelined", "streamed+offload"):
            config.executor = "streamed"
        config.stages, config.data_parallel, config.start_from = 0, False, ""  # whatever it was trained on
        experiment = build(config, described)  # type: ignore[arg-type]  # what an Input lets set, this does not
        return Trained(experiment, step, checkpoints.restore(step, experiment.init()))


def start_from(workdir: Path, experiment: Experiment, state: TrainState) -> TrainState:
    """The state of a new run, whose units, and heads where they fit, are those of a trained one.

    Args:
      workdir: of the trained run; its cuts and its rule may be others.
      experiment: the new run, built.
      state: of the new run, as it was initialised. Optimizers start anew.

    Raises:
      UserError: if there is no checkpoint, or the units are others.
    """
    old = restore(workdir)
    blocks = experiment.blocks
    theirs, ours = _units(old.experiment.blocks, old.state), _units(blocks, state)
    if len(theirs) != len(ours):
        raise UserError(f"start_from {workdir}: it has {len(theirs)} units, this network {len(ours)}")
    units = []
    for i, (new, trained) in enumerate(zip(ours, theirs, strict=True)):
        try:
            units.append(adopted(new, trained))
        except ValueError as error:
            raise UserError(f"start_from {workdir}: unit {i} is not that of this network: {error}") from error
    # Every head belongs to its block, but for the last one: it is the network's own classifier.
    same_cuts = old.experiment.network.cuts == experiment.network.cuts
    starts, taken, following = [], 0, iter(units)
    for k, (block, own) in enumerate(zip(blocks, state.blocks, strict=True)):
        parts = {f"unit_{j}": next(following) for j in range(len(block.units))}
        head = pick(old.state.blocks[k if same_cuts else -1].variables, "head")
        if (same_cuts or k == len(blocks) - 1) and alike(head, pick(own.variables, "head")):
            parts["head"], taken = head, taken + 1
        starts.append(BlockState(merge(own.variables, nest(**parts)), own.opt_state))
    print(f"started from {workdir}: {len(units)} units, {taken} of {len(blocks)} heads", flush=True)
    return TrainState(state.step, state.key, tuple(starts))


def _units(blocks: Sequence[Block], state: TrainState) -> list[Variables]:
    """The variables of each unit of a network."""
    return [
        pick(of.variables, f"unit_{j}")
        for block, of in zip(blocks, state.blocks, strict=True)
        for j in range(len(block.units))
    ]
