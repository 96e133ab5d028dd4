"""What a run leaves behind: ``metrics.jsonl``, TensorBoard events, and lines on the terminal."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from experiments import processes
from experiments.cli import UserError
from jaxlocal.executors import BlockMetrics

Blocks = Sequence[Mapping[str, float]]  # the metrics of each block


def by_seed(metrics: BlockMetrics) -> list[list[dict[str, float]]]:
    """Metrics off the device: for each seed, for each block."""
    blocks = [{name: np.atleast_1d(x) for name, x in block.items()} for block in jax.device_get(metrics)]
    return [
        [{name: float(x[i]) for name, x in block.items()} for block in blocks] for i in range(len(blocks[0]["loss"]))
    ]


def mean(seeds: Sequence[Blocks]) -> list[dict[str, float]]:
    """The metrics of each block, averaged over the seeds."""
    return [
        {name: float(np.mean([block[name] for block in blocks])) for name in blocks[0]}
        for blocks in zip(*seeds, strict=True)
    ]


def tested(history: Sequence[Mapping[str, Any]], step: int) -> list[list[dict[str, float]]]:
    """What was recorded of the test split at a step: for each seed, for each block; empty if nothing was."""
    lines = [line for line in history if line["split"] == "test" and line["step"] == step]
    return [
        [
            {
                name: math.nan if values[i] is None else values[i]
                for name, values in line.items()
                if isinstance(values, list) and (name == "loss" or values[i] is not None)
            }
            for i in range(len(line["loss"]))
        ]
        for line in lines
    ]


class Recorder:
    """Writes metrics. After a restart at ``step``, lines of later steps are dropped, so none is repeated.

    Of several processes the first one writes; the others only remember.
    """

    def __init__(self, workdir: Path, step: int, first_seed: int = 0) -> None:
        self._first_seed = first_seed
        path = workdir / "metrics.jsonl"
        self.history = [line for line in read_history(path) if line["step"] <= step]
        processes.together("history read")
        if processes.first():
            _replace_text(path, "".join(json.dumps(line) + "\n" for line in self.history))
        self._file = (path if processes.first() else Path(os.devnull)).open("a")
        self._events = EventsWriter(str(workdir / "events")) if processes.first() else None
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))  # hides later steps of before

    def write(self, step: int, split: str, seeds: Sequence[Blocks], **scalars: float) -> None:
        """Records the metrics of each block, and scalars of the whole run; one line a seed if there are several."""
        lines = []
        for i, blocks in enumerate(seeds):
            names = sorted({name for block in blocks for name in block})
            per_block = {name: [_finite(block.get(name)) for block in blocks] for name in names}
            which = {"seed": self._first_seed + i} if len(seeds) > 1 else {}
            lines.append({"step": step, "split": split, **which, **scalars, **per_block})
        self.history += lines
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()
        for name, value in scalars.items():
            self._scalar(f"{split}/{name}", value, step)
        for i, block in enumerate(mean(seeds)):
            for name, value in block.items():
                self._scalar(f"{split}/block_{i:02d}/{name}", value, step)

    def sync(self) -> None:
        """Returns when everything is on disk."""
        if self._events:
            os.fsync(self._file.fileno())
            self._events.flush()

    def timing(self, step: int, images_per_second: float) -> None:
        """Records throughput, for TensorBoard only: a resumed run repeats its metrics, not its speed."""
        self._scalar("train/images_per_second", images_per_second, step)

    def close(self) -> None:
        """Flushes everything to disk."""
        with closing(self._file):
            if self._events:
                self._events.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._event(step, summary=scalar(name, value))

    def _event(self, step: int, **what: Any) -> None:
        """Written here and now: the thread of ``SummaryWriter`` would die of a full disk, and all wait for it."""
        if self._events:
            self._events.write_event(Event(wall_time=time.time(), step=step, **what))


def _finite(x: float | None) -> float | None:
    """JSON has no NaN: a metric that a block does not report, or that diverged, is null."""
    return x if x is not None and math.isfinite(x) else None


def read_history(path: Path, fields: Sequence[str] = ("step", "split")) -> list[dict[str, Any]]:
    """The lines of a metrics file, or of another whose lines have these fields; a last one cut short is left out.

    Raises:
      UserError: if another line is damaged.
    """
    texts = path.read_bytes().splitlines() if path.exists() else []
    lines = []
    for i, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not set(fields) <= line.keys():
                raise ValueError(f"no {' and '.join(fields)}")
        except ValueError as error:
            if i == len(texts):
                break
            raise UserError(
                f"{path} is damaged in line {i} of {len(texts)} ({error}): mend that line, or give another --workdir"
            ) from error
        lines.append(line)
    return lines


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one piece: readers see the old file or the new one."""
    _replace_text(path, json.dumps(content, indent=2) + "\n")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Chrono:
    """Throughput and time to go, leaving out compilation (the first step) and evaluation."""

    def __init__(self, num_steps: int, batch_size: int) -> None:
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._first_step = 0
        self._made = time.monotonic()
        self._started: float | None = None

    @property
    def running(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._started is not None

    def start(self, step: int) -> float:
        """Starts the clock after ``step`` steps are done; returns the seconds that it took to get there."""
        self._first_step, self._started = step, time.monotonic()
        return self._started - self._made

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent in here."""
        began = time.monotonic()
        yield
        self._started = (self._started or began) + time.monotonic() - began

    def read(self, step: int) -> tuple[float, str]:
        """Images per second so far, and the time to go as ``h:mm:ss``."""
        elapsed = time.monotonic() - (self._started or 0)
        if step <= self._first_step or elapsed <= 0:
            return 0.0, "-:--:--"
        rate = (step - self._first_step) / elapsed
        seconds = round((self._num_steps - step) / rate)
        return rate * self._batch_size, f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def percent(block: Mapping[str, float], digits: int) -> str:
    """A block's accuracy in percent, or a dash if its objective predicts no classes."""
    return f"{100 * block['accuracy']:.{digits}f}" if "accuracy" in block else "-"


def format_blocks(blocks: Sequence[Mapping[str, float]]) -> str:
    """One row of losses and one of accuracies in percent, first block to last."""
    loss = " ".join(f"{block['loss']:5.3f}" for block in blocks)
    accuracy = " ".join(percent(block, 1).rjust(5) for block in blocks)
    return f"  loss       {loss}\n  accuracy % {accuracy}"
