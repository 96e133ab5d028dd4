"""A run that was trained: restored as it is, or as what another run starts from."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.build import Experiment, build, check_fields
from experiments.checkpoint import Checkpoints
from experiments.cli import UserError
from experiments.workdir import load_config
from jaxlocal.block import Block, BlockState
from jaxlocal.executors import TrainState
from jaxlocal.rules.adapt import adopted
from jaxlocal.variables import Variables, alike, merge, nest, pick


class Trained(NamedTuple):
    """A run, restored.

    Attributes:
      config: of the run, for the devices of this program.
      experiment: built from it.
      step: of the checkpoint.
      state: what it holds.
    """

    config: ConfigDict
    experiment: Experiment
    step: int
    state: TrainState


def restore(workdir: Path, which: str = "last") -> Trained:
    """Restores the ``last`` or the ``best`` checkpoint of a run.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    config = load_config(workdir)
    check_fields(config)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {workdir}: train it first")
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.step(which)
        if step is None:
            raise UserError(f"no {which} checkpoint in {workdir}: train it first")
        if config.executor in ("pipelined", "streamed+offload"):
            config.executor = "streamed"
        config.stages, config.data_parallel, config.start_from = 0, False, ""  # whatever it was trained on
        experiment = build(config)
        return Trained(config, experiment, step, checkpoints.restore(step, experiment.init(config)))


def one_seed(run: Trained) -> Trained:
    """The first seed, of those that were trained together."""
    if run.config.seeds == 1:
        return run
    config = run.config.copy_and_resolve_references()
    config.seeds = 1
    experiment, state = build(config, run.experiment.dataset), jax.tree.map(lambda x: x[0], run.state)
    return Trained(config, experiment, run.step, state)


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
