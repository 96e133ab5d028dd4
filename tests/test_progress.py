"""Long work says how far it is: on a terminal in a bar of its width, in a log in lines."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios

import pytest

from experiments.app.output import output_may_be_lost
from jaxlocal.data import progress
from jaxlocal.data.progress import Progress, bar_below
from tests.programs import train
from tests.test_programs import digits


class Terminal:
    """One of some width, and what was written to it."""

    def __init__(self, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(theirs, "w", buffering=1)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # gone
            self.stream.close()
        with contextlib.suppress(OSError):
            os.close(self._ours)

    def leave(self) -> None:
        """As a closed window."""
        os.close(self._ours)

    def written(self) -> str:
        self.stream.flush()
        os.set_blocking(self._ours, False)
        parts = []
        with contextlib.suppress(OSError):  # nothing more
            while part := os.read(self._ours, 65536):
                parts.append(part)
        return b"".join(parts).decode()


@pytest.fixture
def terminal(request):
    with Terminal(getattr(request, "param", 60)) as terminal:
        yield terminal


def shown(text: str) -> list[str]:
    """The lines that stand on the terminal in the end."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        now = ""
        for part in line.split("\r"):
            now = part + now[len(part) :]
        lines.append(now.rstrip())
    return lines


@pytest.mark.parametrize(("terminal", "columns"), [(40, 40), (100, 100)], indirect=["terminal"])
def test_a_bar_is_as_wide_as_the_terminal(terminal, columns, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with output_may_be_lost(pytest.fail), Progress("decoding", "img", 10) as bar:  # as a run prints
        bar.delay = bar.mininterval = 0
        bar.update(5)
        bar.refresh()
        widest = max(map(len, terminal.written().split("\r")))
    assert columns - 2 <= widest <= columns


def test_a_log_has_a_line_for_each_word(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    assert list(progress.progress("abc", "reading", "letter", 3)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"reading: 2 of 3 letter, 0:00:0\d to go", lines[-2])
    assert not any("\r" in line for line in lines)


def test_work_that_is_soon_done_says_nothing(capsys):
    assert sum(progress.progress(range(1000), "adding", "number", 1000)) == 499500
    assert capsys.readouterr() == ("", "")


def test_lines_stand_above_the_bar(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with bar_below("training", "step", 4) as bar:
        bar.mininterval = 0
        for step in range(4):
            bar.update()
            print("step", step, "of", 4, flush=True)
        print("warning: that is all", file=sys.stderr)
    print("the end")
    expected = [*(f"step {step} of 4" for step in range(4)), "warning: that is all", "the end", ""]
    text = terminal.written()
    assert shown(text) == expected
    assert "training: 100%" in text


def test_a_log_of_a_run_has_no_bar(capsys, tmp_path):
    train(digits(), tmp_path)
    assert "training:" not in "".join(capsys.readouterr())


def test_a_terminal_that_goes_away_costs_no_checkpoint(terminal, monkeypatch, tmp_path):
    """What the bar cannot write is dropped, like all else."""
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    terminal.leave()
    results = train(digits(), tmp_path)
    assert results.stopped_by is None
    assert (tmp_path / "checkpoints" / "4").is_dir()
