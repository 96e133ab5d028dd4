"""What a program prints must not end it: a reader may go away, a disk be full, a terminal be closed."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


def discard(stream: Any) -> None:
    """What is left in a stream, and all that follows, goes nowhere."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class _Output(io.TextIOBase):
    """A stream that takes everything; what the one behind it cannot take any more is dropped."""

    def __init__(self, stream: Any, lost: Callable[[OSError], None]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            discard(self._stream)
            self._lost(error)


@contextlib.contextmanager
def output_may_be_lost(lost: Callable[[OSError], None]) -> Iterator[None]:
    """In here, printing raises nothing; ``lost`` is told once of each stream that takes no more."""
    with (
        contextlib.redirect_stdout(_Output(sys.stdout, lost)),
        contextlib.redirect_stderr(_Output(sys.stderr, lost)),
    ):
        yield
