"""How fast a run goes, and how long it has to go."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Chrono:
    """Throughput and time to go, leaving out compilation (the first step) and evaluation."""

    def __init__(self, num_steps: int, in_a_step: int) -> None:
        self._num_steps = num_steps
        self._in_a_step = in_a_step
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
        """Images, or tokens, per second so far, and the time to go as ``h:mm:ss``."""
        elapsed = time.monotonic() - (self._started or 0)
        if step <= self._first_step or elapsed <= 0:
            return 0.0, "-:--:--"
        rate = (step - self._first_step) / elapsed
        seconds = round((self._num_steps - step) / rate)
        return rate * self._in_a_step, f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
