"""Events of a run for TensorBoard. To import this loads PyTorch, if that is installed: who trains does, no one else."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class Events:
    """A file of them, written here and now: a thread of its own would die of a full disk, and all wait for it.

    Args:
      directory: of the file, made if need be.
      step: from which on this file holds; what others there have of it is hidden.
    """

    def __init__(self, directory: Path, step: int) -> None:
        suffix = f".{time.time_ns()}"  # two files may begin within the second that they are called after
        self._writer = EventsWriter(str(directory), suffix)
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers of a step, by their names."""
        for name, value in scalars.items():
            self._write(step, summary=scalar(name, value))

    def flush(self) -> None:
        """Returns when everything is on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Likewise, for good."""
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
