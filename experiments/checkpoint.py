"""Checkpoints of a run: the newest ones and the best one, by Orbax. Nothing else here knows Orbax."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from experiments.cli import UserError
from jaxlocal.executors import TrainState

NOT_EVALUATED = -1.0  # the accuracy of a checkpoint taken between evaluations: never the best


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``: the last two, and the one of best test accuracy."""

    def __init__(self, workdir: Path) -> None:
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(
                    [policy.LatestN(2), policy.BestN(get_metric_fn=_accuracy, n=1)]
                ),
                best_fn=_accuracy,
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, step: int, state: TrainState, accuracy: float = NOT_EVALUATED) -> None:
        """Saves in the background; a step that is saved already is left alone."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics={"accuracy": accuracy})

    def step(self, which: str) -> int | None:
        """The step of the ``last`` or the ``best`` checkpoint; None if there is none."""
        return self._manager.latest_step() if which == "last" else self._manager.best_step()

    def restore(self, step: int, template: TrainState) -> TrainState:
        """Restores a step into the shapes of ``template``.

        Raises:
          UserError: if the checkpoint is damaged or of another network.
        """
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(jax.eval_shape(lambda: template)))
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"checkpoint {self._manager.directory / str(step)} cannot be restored ({reason}): "
                "remove that directory to go on from an earlier one"
            ) from error

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]
