"""A run's directory, and the ``config.json`` that says whose it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import processes
from experiments.cli import UserError
from experiments.record import write_json

_FILE = "config.json"
# Fields that may change when a run goes on: they hardly touch its results, and machines differ.
_FREE = ("evidence", "data_dir", "eval_batch_size", "executor", "stages", "data_parallel", "workers")
# Fields that runs of older versions do not have.
_ADDED = {
    "executor": "fused",
    "stages": 0,
    "data_parallel": False,
    "sync_batch_norm": False,
    "image_size": 224,
    "workers": 0,
    "augment": True,
    "start_from": "",
}


def claim(workdir: Path, config: ConfigDict, about: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Makes the directory this config's own, or finds that it is already.

    Raises:
      UserError: as :func:`check`, or if the directory cannot be written.
    """
    check(workdir, config)
    processes.together("checked")  # all of them, before any of them writes
    if holds_run(workdir) or not processes.first():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / _FILE, {"config": config.to_dict(), "about": about, "environment": environment})
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error


def check(workdir: Path, config: ConfigDict) -> None:
    """Leaves the directory as it is.

    Raises:
      UserError: if it holds a run of another config.
    """
    if not holds_run(workdir):
        return
    both = (_read(workdir)["config"], json.loads(json.dumps(config.to_dict())))
    theirs, ours = ({k: v for k, v in c.items() if k not in _FREE} for c in both)
    if differing := _differences(theirs, ours):
        field, old, new = differing[0]
        raise UserError(
            f"workdir {workdir} holds a run with {field}={old!r}, now {new!r} is given: "
            "give another --workdir, or the old config to go on"
        )


def holds_run(workdir: Path) -> bool:
    """Whether the directory is a run's."""
    return (workdir / _FILE).exists()


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run. It is read as data; nothing is executed.

    Raises:
      UserError: if there is no run in the directory.
    """
    return ConfigDict(_read(workdir)["config"])


def _read(workdir: Path) -> dict[str, Any]:
    path = workdir / _FILE
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        runs = ", ".join(str(found.parent) for found in sorted(workdir.glob(f"*/{_FILE}")))
        hint = f"; runs are in {runs}" if runs else ""
        raise UserError(f"no run in {workdir}: {_FILE} cannot be read ({error.strerror}){hint}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(f"{path} is damaged (no field 'config')")
    content["config"] = {**_ADDED, **content["config"]}
    return content


def _differences(old: Any, new: Any, field: str = "config") -> list[tuple[str, Any, Any]]:
    """``(field, old, new)`` wherever two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in sorted({*old, *new}) for d in _differences(old.get(k), new.get(k), f"{field}.{k}")]
    return [] if old == new else [(field, old, new)]
