"""Divergence: a block whose update would have held NaN or infinity kept its state; here it is noticed and told.

``on_divergence`` says what follows. ``stop`` ends the run. ``skip`` goes on: the other blocks never noticed, but for
later ones whose input was not finite either. ``rollback`` goes back to the last checkpoint, with other random numbers
from there on; if that does not help before the next checkpoint, the run stops.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.app import processes
from experiments.app.errors import DIVERGED, GOES_ON, UserError
from experiments.app.files import saving, write_json
from experiments.recipe.experiment import Experiment
from experiments.training.checkpoint import plain
from jaxlocal import data
from jaxlocal.executors import ONE_DEVICE, BlockMetrics, TrainState

_OTHER = np.uint32(2**32 - 1)  # no step has this number


class DivergedError(UserError):
    """A block diverged, and the config does not say that this is to be skipped."""

    code = DIVERGED


class Watch:
    """Looks at each step's metrics; the first step at which a block diverged has a post-mortem in the workdir."""

    def __init__(self, experiment: Experiment, workdir: Path) -> None:
        self._config, self._experiment = experiment.config, experiment
        self._directory = workdir / "postmortem"
        self._known: set[tuple[int, int]] = set()  # (block, seed) that diverged at the step before, or it was told

    def look(self, steps: Sequence[tuple[int, BlockMetrics]], state: TrainState) -> None:
        """Notices divergence in consecutive steps whose metrics are there.

        Args:
          steps: number of each, counted from 1, and its metrics.
          state: the present one, which may be of a later step.

        Raises:
          DivergedError: if there is any, and it is not to be skipped.
        """
        if not steps:
            return
        flags = self._experiment.executor.gather(
            tuple(_stacked([metrics[i]["finite"] for _, metrics in steps]) for i in range(len(self._experiment.blocks)))
        )
        finite = np.stack(flags, 1).reshape(len(steps), len(flags), -1) > 0  # [steps, blocks, seeds]
        for (step, metrics), of_step in zip(steps, finite, strict=True):
            diverged = {(int(block), int(seed)) for block, seed in np.argwhere(~of_step)}
            if diverged - self._known:
                self._tell(step, metrics, diverged, state)
            self._known = diverged

    def _tell(self, step: int, metrics: BlockMetrics, diverged: set[tuple[int, int]], state: TrainState) -> None:
        seeds = self._experiment.by_seed(metrics)
        block, seed = min(diverged)
        path = self._save(step, seeds, state)
        terms = ", ".join(f"{name}={x:.4g}" for name, x in seeds[seed][block].items() if name != "finite")
        others = sorted({other for other, _ in diverged} - {block})
        named = f"block{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
        after = f"; so did {named} at this step" if others else ""
        of_seed = f" of seed {self._config.seed + seed}" if self._config.seeds > 1 else ""
        what = (
            f"block {block}{of_seed} diverged at step {step} ({terms}){after}; the update was not made, and {path} has "
            "state, batch and keys"
        )
        if self._config.on_divergence != "skip":
            other = ", or go on here with --config.on_divergence=skip or rollback"
            other = "" if self._config.on_divergence == "rollback" else other
            raise DivergedError(f"{what}: lower the learning rate in another --workdir{other}")
        print(f"warning: {what}; on_divergence=skip goes on", file=sys.stderr, flush=True)

    def _save(self, step: int, seeds: Sequence[Sequence[dict[str, float]]], state: TrainState) -> Path:
        """The post-mortem: ``step_N.npz``, read without pickle, and ``step_N.json``; an older one is left alone."""
        path = self._directory / f"step_{step}.npz"
        state = self._experiment.whole(state)
        if not processes.first() or path.exists():
            return path
        here = self._experiment._replace(placement=ONE_DEVICE)
        batch = data.decoded(here.data_of(step - 1))
        tree = {"state": state, "batch": batch._asdict(), "key_of_step": _folded(state.key, step - 1)}
        arrays = {
            jax.tree_util.keystr(at, simple=True, separator="/"): plain(x)
            for at, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        about = {
            "step": step,
            "state_of_step": int(np.max(state.step)),
            "seeds": [[{name: repr(x) for name, x in block.items()} for block in blocks] for blocks in seeds],
        }
        with saving(self._directory, GOES_ON):
            self._directory.mkdir(exist_ok=True)
            write_json(path.with_suffix(".json"), about)
            with (self._directory / "unfinished").open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(file.name, path)
        return path


def with_other_key(state: TrainState) -> TrainState:
    """The same state, which goes on with other random numbers: of augmentation, dropout and noise."""
    return TrainState(state.step, _folded(state.key, _OTHER), state.blocks)


def _folded(key: Any, data: Any) -> Any:
    """Of one seed, or of several along the leading axis."""
    return (jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in)(key, data)


def _stacked(values: Sequence[Any]) -> Any:
    """Scalars of several steps, off the device; shapes if they are another process's."""
    if isinstance(values[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(values), *values[0].shape), values[0].dtype)
    return np.stack(jax.device_get(list(values)))
