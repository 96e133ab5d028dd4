"""How far long work is: a bar as wide as the terminal, or lines in a log."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from tqdm.std import tqdm

LOG_EVERY = 60.0  # seconds between two lines of a log


class Progress(tqdm):
    """What counts. Where stderr is no terminal, as in a file, each word of it is a line of its own.

    Args:
      what: the first words, as ``decoding cifar10``.
      unit: of what is counted.
      total: how many there are.
      initial: how many were done before.
      over: what is gone through; None where :meth:`update` counts.
      delay: seconds until a terminal shows anything: what is soon done needs no bar.
    """

    monitor_interval = 0  # no thread beside ours

    def __init__(
        self,
        what: str,
        unit: str,
        total: int,
        initial: int = 0,
        over: Iterable[Any] | None = None,
        delay: float = 1.0,
    ) -> None:
        self.in_log = not sys.stderr.isatty()
        super().__init__(
            over,
            desc=what,
            unit=unit,
            unit_scale=False,
            total=total,
            initial=initial,
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
            delay=LOG_EVERY if self.in_log else delay,
            mininterval=LOG_EVERY if self.in_log else 0.2,
            miniters=1,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Is called by tqdm, when it is time; says whether there is anything to clear."""
        if not self.in_log:
            return bool(super().display(msg, pos))
        if msg is None:  # an empty one is to clear the bar
            self.fp.write(f"{self.as_line()}\n")
            self.fp.flush()
        return False

    def as_line(self) -> str:
        """``decoding cifar10: 12,000 of 50,000 img, 0:05:00 to go``."""
        done = self.format_dict
        rate = (done["n"] - done["initial"]) / max(done["elapsed"], 1e-9)
        seconds = round((done["total"] - done["n"]) / rate) if rate else 0
        to_go = f", {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} to go" if rate else ""
        return f"{self.desc}: {done['n']:,} of {done['total']:,} {self.unit}{to_go}"


def progress(over: Iterable[Any], what: str, unit: str, total: int) -> Progress:
    """Goes through ``over`` and shows how far it is."""
    return Progress(what, unit, total, over=over)


class _Above:
    """A stream of a terminal whose last line is a bar: what is printed goes above it."""

    def __init__(self, stream: Any, bar: Progress) -> None:
        self._stream, self._bar, self._hidden = stream, bar, False

    def write(self, text: str) -> int:
        if not self._hidden:
            self._bar.clear()
        self._stream.write(text)
        self._hidden = not text.endswith("\n")  # a line is written in parts
        if not self._hidden:
            self._bar.refresh()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def bar_below(what: str, unit: str, total: int, initial: int = 0) -> Iterator[Progress]:
    """A bar on a terminal while other lines are printed, which are what a log has in its place."""
    with Progress(what, unit, total, initial, delay=0.0) as bar:
        if bar.in_log:
            bar.disable = True
            yield bar
            return
        with redirect_stdout(_Above(sys.stdout, bar)), redirect_stderr(_Above(sys.stderr, bar)):
            yield bar
