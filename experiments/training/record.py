"""What a run leaves behind: ``metrics.jsonl`` and TensorBoard events, and what Weights & Biases is told."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from experiments.app import processes
from experiments.app.files import finite, read_lines, replace_text
from experiments.recipe.experiment import Blocks
from experiments.training.online import Board
from experiments.training.results import mean


class Recorder:
    """Writes metrics. After a restart at ``step``, lines of later steps are dropped, so none is repeated.

    Of several processes the first one writes; the others only remember.
    """

    def __init__(self, workdir: Path, step: int, first_seed: int = 0, board: Board | None = None) -> None:
        self._first_seed, self._board = first_seed, board
        path = workdir / "metrics.jsonl"
        self.history = [line for line in read_lines(path) if line["step"] <= step]
        processes.together("history read")
        if processes.first():
            replace_text(path, "".join(json.dumps(line) + "\n" for line in self.history))
        self._file = (path if processes.first() else Path(os.devnull)).open("a", encoding="utf-8")
        self._events = None
        if processes.first():
            from experiments.training.events import Events

            self._events = Events(workdir / "events", step + 1)

    def write(self, step: int, split: str, seeds: Sequence[Blocks], **scalars: float) -> None:
        """Records the metrics of each block, and scalars of the whole run; one line a seed if there are several."""
        lines = []
        for i, blocks in enumerate(seeds):
            names = sorted({name for block in blocks for name in block})
            per_block = {name: [block.get(name) for block in blocks] for name in names}
            which = {"seed": self._first_seed + i} if len(seeds) > 1 else {}
            lines.append(finite({"step": step, "split": split, **which, **scalars, **per_block}))
        self.history += lines
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()
        means = {f"{split}/block_{i:02d}/{name}": x for i, block in enumerate(mean(seeds)) for name, x in block.items()}
        self._scalars(step, {f"{split}/{name}": x for name, x in scalars.items()} | means)

    def sync(self) -> None:
        """Returns when everything is on disk."""
        if self._events:
            os.fsync(self._file.fileno())
            self._events.flush()

    def timing(self, step: int, name: str, per_second: float) -> None:
        """Records throughput, not in ``metrics.jsonl``: a resumed run repeats its metrics, not its speed."""
        self._scalars(step, {f"train/{name}": per_second})

    def close(self) -> None:
        """Flushes everything to disk."""
        with closing(self._file):
            if self._events:
                self._events.close()
            if self._board:
                self._board.close()

    def _scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._events:
            self._events.scalars(step, scalars)
        if self._board:
            self._board.log(step, scalars)
