"""Runs of several processes, each with its own devices: how they find each other, agree, and end together."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from experiments.app.errors import EXHAUSTED, LOST, UserError, user_input
from jaxlocal.executors import DataParallel

_OWN = (EXHAUSTED, "INVALID_ARGUMENT", "UNIMPLEMENTED")  # errors that no other process causes
_PATIENCE = 60  # seconds until a process that does not answer counts as lost


def define_flags() -> None:
    """The flags that say that a program is one of several processes."""
    flags.DEFINE_bool("distributed", False, "One of several processes, as Slurm, Open MPI or a TPU pod starts them.")
    flags.DEFINE_string("coordinator", None, "Elsewhere: host:port of process 0, as every process is told.")
    flags.DEFINE_integer("num_processes", None, "Elsewhere: how many there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Elsewhere: which one this is, from 0.", lower_bound=0)


def join() -> None:
    """Meets the other processes, if the flags say that there are any. Only process 0 writes to stdout from then on.

    Raises:
      UserError: if the flags do not say enough, or the others are not found.
    """
    values = flags.FLAGS
    told = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    if all(x is None for x in told.values()) and not values.distributed:
        return
    if not values.distributed and (missing := [f"--{name}" for name, x in told.items() if x is None]):
        raise UserError(f"{' and '.join(missing)} not given: they go together; or --distributed, where a cluster tells")
    connect(told["coordinator"], told["num_processes"], told["process_id"])


def connect(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Likewise, without flags."""
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise UserError(f"--process_id={process_id} of {num_processes} processes: count from 0")
    with user_input("processes"):
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                heartbeat_timeout_seconds=_PATIENCE,
                initialization_timeout=_PATIENCE,
            )
        except RuntimeError as error:
            raise ValueError(next(iter(str(error).splitlines()), "not found")) from error
    together("met")  # now: of processes that are not in step, gloo would wait half a minute for the first message
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end


def first() -> bool:
    """Whether this is process 0, which writes the files that are not everyone's."""
    return jax.process_index() == 0


def agreed(own: bool) -> bool:
    """Whether any process says so; all of them have to ask."""
    if alone():
        return own
    return bool(np.any(multihost_utils.process_allgather(np.array(own))))


def alone() -> bool:
    """Whether there are no others."""
    return jax.process_count() == 1


def everywhere(tree: Any) -> Any:
    """Of values that all processes have alike, arrays that belong to all."""
    return tree if alone() else DataParallel(jax.devices()).replicate(tree)


def of_first(x: Any) -> Any:
    """What process 0 has, of values of one shape."""
    return x if alone() else multihost_utils.broadcast_one_to_all(np.asarray(x))


def together(what: str) -> None:
    """Waits until all processes are here."""
    if not alone():
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def loss_ends_the_run() -> Iterator[None]:
    """Within, an error that another process left behind ends this one too, in one line.

    The process ends at once: what would be done in order would wait for the others. So does one that
    fails by itself, with its traceback.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if alone():
            raise
        if str(error).startswith(_OWN):
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        reason = next(iter(str(error).splitlines()), "")
        print(
            f"error: process {jax.process_index()} lost another one of {jax.process_count()} ({reason}): start all of "
            "them again with the same --workdir, and the run goes on from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)
