"""Metrics to Weights & Biases, beside the files of a run; offline by its own means (``WANDB_MODE=offline``)."""

import importlib.util
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from experiments.app.errors import UserError, one_line

_ID = "run_id"


def check_wandb(project: str) -> None:
    """Before anything is written.

    Raises:
      UserError: if a project is named and the package is not there.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(f"wandb={project}: it needs a package: pip install 'jaxlocal[wandb]'")


class Board:
    """A run of a project. Started again in the same workdir, it is the same run, and goes on.

    What it cannot take is told once and left out: the files of the run have it, and training goes on.
    """

    def __init__(self, workdir: Path, config: FrozenConfigDict) -> None:
        import wandb

        directory = workdir / "wandb"
        directory.mkdir(exist_ok=True)
        if not (directory / _ID).exists():
            (directory / _ID).write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        try:
            self._run: Any = wandb.init(
                project=config.wandb,
                id=(directory / _ID).read_text(encoding="utf-8"),
                resume="allow",
                name=str(workdir),
                dir=str(workdir),
                config=config.to_dict(),
                settings=wandb.Settings(console="off", silent=True),
            )
            self._run.define_metric("*", step_metric="step")  # its own counter takes no step twice
        except Exception as error:
            raise UserError(
                f"wandb={config.wandb}: {one_line(error)}; `wandb login` once, or WANDB_MODE=offline, or leave it out"
            ) from error
        print(f"Weights & Biases: {self._run.dir if self._run.offline else self._run.url}", flush=True)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Metrics of a step, by the names that TensorBoard has them under."""
        self._tried("log", {"step": step, **scalars})

    def close(self) -> None:
        """Hands on what there is."""
        self._tried("finish")

    def _tried(self, method: str, *given: Any) -> None:
        if self._run:
            try:
                getattr(self._run, method)(*given)
            except Exception as error:
                self._run = None
                print(f"warning: Weights & Biases takes no more: {one_line(error)}", file=sys.stderr, flush=True)
