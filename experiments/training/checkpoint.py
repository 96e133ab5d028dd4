"""Checkpoints of a run: the newest ones and the best one, by Orbax. Nothing else here knows Orbax.

Orbax restores a flipped byte as a wrong number, so each checkpoint carries a checksum of its tensors.
"""

import errno
import json
import logging
import math
import os
import re
import sys
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import CodeType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from experiments.app import processes
from experiments.app.errors import NotSavedError, UserError
from experiments.app.files import no_pattern
from jaxlocal.executors import TrainState

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE)  # no checkpoint is to blame
_NOT_EVALUATED = -1.0  # the accuracy that older runs gave a checkpoint taken between evaluations


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``: the last two, and the best by the number that is compared."""

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        """Opens them.

        Raises:
          UserError: if one is damaged such that Orbax cannot list them, and it is read only, or all of them are.
        """
        self._workdir = workdir
        damaged = _with_damaged_metrics(workdir / "checkpoints")
        if damaged and len(damaged) == len(_steps(workdir)):
            raise _none_intact(damaged)
        for step, error in damaged.items():
            if read_only:
                raise UserError(f"{error}; the command that trained it sets it aside and goes on from the one before")
            self._set_aside(step, error)
        processes.together("opened")  # not before what is damaged is gone
        _ignore_reads_given_up()
        if not read_only and processes.first():
            (workdir / "checkpoints").mkdir(exist_ok=True)
        self._held = ExitStack()
        self._manager = ocp.CheckpointManager(
            self._held.enter_context(no_pattern((workdir / "checkpoints").absolute())),
            options=ocp.CheckpointManagerOptions(
                read_only=read_only,
                create=not read_only,
                preservation_policy=policy.AnyPreservationPolicy(
                    [policy.LatestN(2), policy.BestN(get_metric_fn=_headline, reverse=True, n=1)]
                ),
                best_fn=_headline,
                best_mode="min",
                cleanup_tmp_directories=not read_only,
            ),
        )

    def save(self, step: int, state: TrainState, headline: float | None = None) -> None:
        """Saves in the background; a step that is saved already is left alone.

        Args:
          step: of the state.
          state: whole.
          headline: as :meth:`experiments.training.metrics.Metrics.of_last` has it, less is better; None if it was not
            evaluated.

        Raises:
          NotSavedError: if this one, or the one before, cannot be written.
        """
        if step not in self._manager.all_steps():
            metrics = {"headline": headline, "crc32": _checksum(state, headline)}
            args = ocp.args.Composite(state=ocp.args.StandardSave(state))
            with self._saving():
                if not self._manager.save(step, args=args, metrics=metrics):
                    raise ValueError(f"step {step} is not later than those that are there")

    def step(self, which: str) -> int | None:
        """The step of the ``last`` or the ``best`` checkpoint.

        Returns:
          None if there is none, or, for ``best``, none that was evaluated.
        """
        self.wait()
        if which == "last":
            return self._manager.latest_step()
        best = self._manager.best_step()
        return None if best is None or _headline(self._manager.metrics(best)) == math.inf else best

    def restore(self, step: int, template: TrainState) -> TrainState:
        """Restores a step into the shapes, and onto the devices, of ``template``.

        Raises:
          UserError: if the checkpoint is damaged or of another network.
        """
        directory = self._workdir / "checkpoints" / str(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state
            metrics = self._manager.metrics(step)
            expected = metrics["crc32"]
        except Exception as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _OF_THE_MACHINE:
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"checkpoint {directory} cannot be restored: {reason}") from error
        if _checksum(state, _judged(metrics)) != expected:
            raise UserError(
                f"checkpoint {directory} cannot be restored: its tensors and headline number do not have the checksum "
                "they had"
            )
        return state

    def resume(self, template: TrainState) -> tuple[int, TrainState]:
        """The newest checkpoint that is intact; ``(0, template)`` if there is none at all.

        Newer ones that are damaged are named on stderr and moved to ``workdir/damaged``.

        Raises:
          UserError: if there are checkpoints, and none is intact.
        """
        failures: dict[int, UserError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            error = None
            try:
                state = self.restore(step, template)
            except UserError as raised:
                error = raised
            if processes.agreed(error is not None):
                failures[step] = error or UserError(f"checkpoint {step} cannot be restored by another process")
                continue
            for damaged, error in failures.items():
                self._set_aside(damaged, error)
            if failures:
                processes.together("set aside")
                self._manager.reload()
            return step, state
        if failures:
            raise _none_intact(failures)
        return 0, template

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          NotSavedError: if it cannot be written.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Likewise, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            with self._held, self._saving():
                self._manager.close()

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Orbax and what it writes by have errors of many types."""
        try:
            yield
        except Exception as error:
            if isinstance(error, jax.errors.JaxRuntimeError):  # the state itself, or another process
                raise
            said = re.search(r"([^:]+) \[os_error_code", str(error))
            reason = said[1].strip() if said else next(iter(str(error).splitlines()), type(error).__name__)
            last = self._manager.latest_step()
            kept = "no step is saved" if last is None else f"step {last} is intact, and the same command goes on there"
            raise NotSavedError(
                f"checkpoint in {self._workdir / 'checkpoints'} cannot be written: {reason}; {kept}"
            ) from error

    def _set_aside(self, step: int, error: UserError) -> None:
        if processes.first():
            directory = self._workdir / "damaged"
            directory.mkdir(exist_ok=True)
            names = (directory / (f"{step}.{i}" if i else str(step)) for i in count())
            target = next(path for path in names if not path.exists())  # the same step may be damaged again
            (self._workdir / "checkpoints" / str(step)).rename(target)
            print(f"warning: {error}; it is in {target} now, going on from an earlier one", file=sys.stderr)


def _with_damaged_metrics(directory: Path) -> dict[int, UserError]:
    """Checkpoints whose metrics, which say which one is best, cannot be read: with such a one Orbax lists none."""
    found = {}
    for path in directory.glob("*/metrics/metrics"):
        try:
            metrics = json.loads(path.read_bytes())
            whole = isinstance(metrics, dict) and metrics.keys() in ({"headline", "crc32"}, {"accuracy", "crc32"})
            if not whole or not isinstance(_judged(metrics), float | None) or type(metrics["crc32"]) is not int:
                raise ValueError("they have no numbers 'headline' and 'crc32'")
        except (OSError, ValueError) as error:
            checkpoint = path.parent.parent
            if checkpoint.name.isdigit():
                found[int(checkpoint.name)] = UserError(f"checkpoint {checkpoint} has damaged metrics: {error}")
    return found


def _ignore_reads_given_up() -> None:
    """From now on. Where one read of a checkpoint fails, Orbax waits for no other, and Python prints their errors."""
    shown, log = sys.unraisablehook, logging.getLogger("asyncio")
    if getattr(shown, "ignores_reads", False):
        return

    def hook(given: Any) -> None:
        abandoned = str(given.exc_value) == "Event loop is closed" or given.exc_type is GeneratorExit
        if not (abandoned or _of_orbax(getattr(given.object, "cr_code", None))):
            shown(given)

    def keep(record: logging.LogRecord) -> bool:
        _, _, where = record.exc_info or (None, None, None)
        frames = (frame.f_code for frame, _ in traceback.walk_tb(where))
        return not any(map(_of_orbax, frames))

    hook.ignores_reads = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook
    log.addFilter(keep)


def _of_orbax(code: CodeType | None) -> bool:
    return code is not None and code.co_filename.startswith(os.path.dirname(ocp.__file__))


def _none_intact(failures: Mapping[int, UserError]) -> UserError:
    return UserError(f"no checkpoint is intact, give another --workdir to start anew: {failures[max(failures)]}")


def _steps(workdir: Path) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def has_any(workdir: Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return bool(_steps(workdir))


def checksum(state: TrainState) -> int:
    """CRC-32 of all tensors of a state, in the order of its tree."""
    crc = 0
    for leaf in jax.tree.leaves(state):
        of_bytes = np.ascontiguousarray(plain(leaf)).view(np.uint8)  # Python's buffers know no bfloat16
        crc = zlib.crc32(of_bytes.data, crc)
    return crc


def plain(x: Any) -> np.ndarray:
    """An array, or the numbers of a key, off the device."""
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def _judged(metrics: Mapping[str, Any]) -> float | None:
    """How the checkpoint was judged: its headline number; in older runs, all of which went by it, its accuracy."""
    return metrics["accuracy"] if "accuracy" in metrics else metrics["headline"]


def _headline(metrics: Mapping[str, Any]) -> float:
    """Less is better; infinite if it was not evaluated."""
    judged = _judged(metrics)
    if judged is None or ("accuracy" in metrics and judged == _NOT_EVALUATED):
        return math.inf
    return 100 * (1 - judged) if "accuracy" in metrics else judged


def _checksum(state: TrainState, judged: float | None) -> int:
    """Of what a checkpoint holds."""
    return zlib.crc32(repr(judged).encode(), checksum(state))
