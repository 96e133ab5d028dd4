"""A run's directory, and the ``config.json`` that says whose it is."""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from ml_collections import ConfigDict, FrozenConfigDict

from experiments.app import processes
from experiments.app.errors import UserError, user_input
from experiments.app.files import saving, write_json
from experiments.configs import common

_FILE = "config.json"
# Fields that may change when a run goes on: they hardly touch its results, and machines differ.
_FREE = (
    "evidence",
    "data_dir",
    "eval_batch_size",
    "executor",
    "stages",
    "data_parallel",
    "workers",
    "on_divergence",
    "wandb",
)
# Fields that runs of older versions do not have; they ran as the shared configs say.
_ADDED = (
    *_FREE,
    "device",
    "sync_batch_norm",
    "image_size",
    "augment",
    "mean",
    "std",
    "split_seed",
    "in_memory",
    "start_from",
    "warmup_steps",
    "learning_rate_end",
    "milestones",
    "decay",
    "tokenizer",
)


class InUseError(UserError):
    """Another process trains in the directory."""


@contextmanager
def claimed(
    workdir: Path, config: FrozenConfigDict, about: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[None]:
    """Holds the directory for this config's run, which it is already or becomes. No other run can meanwhile.

    Raises:
      UserError: as :func:`check`, if the data are others, another run holds it, or it cannot be written.
    """
    check(workdir, config)
    processes.together("checked")  # all of them, before any of them writes
    with _locked(workdir):
        check(workdir, config)  # again: it may have been another's until now
        if holds_run(workdir):
            held = load_record(workdir)
            _check_data(workdir, held.get("about", {}).get("data"), about.get("data"))
            before, now = held.get("environment", {}).get("code"), environment.get("code")
            if processes.first() and None not in (before, now) and before != now:
                print(
                    f"warning: the run in {workdir} was begun by other code of jaxlocal than this, and goes on from "
                    "there: give another --workdir to train anew",
                    file=sys.stderr,
                )
        elif processes.first():
            with saving(workdir):
                write_json(workdir / _FILE, {"config": config.to_dict(), "about": about, "environment": environment})
        yield


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Process 0 holds a locked file in here. The lock ends with the process, however that ends."""
    error: UserError | None = None
    with ExitStack() as held:
        if processes.first():
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                file = held.enter_context((workdir / "lock").open("a+", encoding="utf-8"))
                _lock(file)
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            except BlockingIOError:
                holder = (workdir / "lock").read_text(encoding="utf-8") or "another process"
                error = InUseError(f"workdir {workdir} is in use by {holder}: give another one, or let that run end")
            except OSError as raised:
                error = UserError(f"workdir {workdir} cannot be written: {raised.strerror}")
        if processes.agreed(error is not None):
            raise error or UserError(f"process 0 cannot use workdir {workdir}")
        yield


def _lock(file: IO[str]) -> None:
    """Locks it where the file system has locks; where it has none (some of Lustre and NFS), a warning stands instead.

    Raises:
      BlockingIOError: if it is locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        why = f"{file.name} cannot be locked ({error.strerror})"
        print(f"warning: {why}: see to it that one run alone uses the workdir", file=sys.stderr)


def check(workdir: Path, config: ConfigDict) -> None:
    """Leaves the directory as it is.

    Raises:
      UserError: if it holds a run of another config, or nothing can be written there.
    """
    near = next(path for path in (workdir, *workdir.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(near) or not os.access(near, os.W_OK | os.X_OK):
        raise UserError(f"workdir {workdir} cannot be written: {near} is no directory where this user may write")
    if not holds_run(workdir):
        return
    if found := differing(load_record(workdir)["config"], config):
        field, old, new = found[0]
        raise UserError(
            f"workdir {workdir} holds a run with {field}={old!r}, now {new!r} is given: "
            "give another --workdir, or the old config to go on"
        )


def differing(recorded: Mapping[str, Any], config: ConfigDict) -> list[tuple[str, Any, Any]]:
    """``(field, recorded, now)`` wherever a recorded config has another value, but where that hardly touches results.

    Fields that the recorded one is too old to have are as the shared configs say.
    """
    both = (_with_added(recorded), json.loads(json.dumps(config.to_dict())))
    theirs, ours = ({k: v for k, v in c.items() if k not in _FREE} for c in both)
    return _differences(theirs, ours)


def _with_added(recorded: Mapping[str, Any]) -> dict[str, Any]:
    shared = common.digits()
    if isinstance(
        recorded.get("augment", True), bool
    ):  # a recipe or none; the size was of sets that are streamed alone
        size = recorded.get("image_size", 224)
        now = {
            "augment": "recipe" if recorded.get("augment", True) else "none",
            "image_size": 0 if size == 224 else size,
        }
        recorded = {**recorded, **now}
    return {**{name: list(x) if isinstance(x := shared[name], tuple) else x for name in _ADDED}, **recorded}


def _check_data(workdir: Path, before: Any, now: Any) -> None:
    """What a data set is described by is what it was when the run began; older runs do not say all of it."""
    if isinstance(before, dict) and isinstance(now, dict):
        said = {field: x for field, x in json.loads(json.dumps(now)).items() if field in before}
        differing = {field for field, *_ in _differences(before, said, "data")}
        if differing:
            differing = differing - {"data.fingerprint"} or differing  # which says no more than that they differ
            raise UserError(
                f"workdir {workdir} holds a run on other data than these ({', '.join(sorted(differing))}): give "
                "another --workdir, or the data of before to go on"
            )


def holds_run(workdir: Path) -> bool:
    """Whether the directory is a run's.

    Raises:
      UserError: if that cannot be told.
    """
    try:
        return (workdir / _FILE).exists()
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be read: {error.strerror}") from error


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run. It is read as data; nothing is executed.

    Raises:
      UserError: if there is no run in the directory, or what it holds is no config.
    """
    content = load_record(workdir)["config"]
    with user_input(str(workdir / _FILE)):
        return ConfigDict(content)


def load_record(workdir: Path) -> dict[str, Any]:
    """What a run's ``config.json`` holds: ``config``, ``about`` and ``environment``.

    Raises:
      UserError: if there is no run in the directory, or the file is damaged.
    """
    path = workdir / _FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        runs = [str(found.parent) for depth in ("*", "*/*") for found in sorted(workdir.glob(f"{depth}/{_FILE}"))]
        hint = f"; runs are in {', '.join(runs[:3])}{', ...' * (len(runs) > 3)}" if runs else ""
        raise UserError(f"no run in {workdir}: {_FILE} cannot be read ({error.strerror}){hint}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(f"{path} is damaged (no field 'config')")
    for field in ("about", "environment"):
        if not isinstance(content.get(field, {}), dict):
            raise UserError(f"{path} is damaged (field {field!r} holds no names)")
    content["config"] = _with_added(content["config"])
    return content


def _differences(old: Any, new: Any, field: str = "config") -> list[tuple[str, Any, Any]]:
    """``(field, old, new)`` wherever two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in sorted({*old, *new}) for d in _differences(old.get(k), new.get(k), f"{field}.{k}")]
    return [] if old == new else [(field, old, new)]
