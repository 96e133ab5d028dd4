"""Weights & Biases, by its own package where that is offline, and without it."""

import importlib.util
import sys
import types

import pytest

from experiments.app.errors import UserError
from experiments.training.online import Board
from tests.programs import program, train
from tests.test_programs import DIGITS, digits


def test_a_project_without_the_package_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb=mine: it needs a package: pip install 'jaxlocal\[wandb\]'"):
        train(digits(wandb="mine"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_board_that_takes_no_more_is_told_once(monkeypatch, tmp_path, capsys):
    class Run:
        url, offline, logged = "somewhere", False, 0

        def define_metric(self, *_, **__):
            pass

        def log(self, scalars):
            Run.logged += 1
            raise RuntimeError("no network")

    fake = types.SimpleNamespace(init=lambda **_: Run(), Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    board = Board(tmp_path, digits(wandb="mine"))
    board.log(1, {"loss": 1.0})
    board.log(2, {"loss": 0.5})
    board.close()
    said = capsys.readouterr()
    assert said.err.count("warning: Weights & Biases takes no more: no network") == 1
    assert (said.out, Run.logged) == ("Weights & Biases: somewhere\n", 1)


@pytest.mark.slow
def test_a_run_that_goes_on_is_one_run_offline(tmp_path):
    given = (DIGITS, "--config.wandb=mine", f"--workdir={tmp_path}")
    done = program("train", *given, WANDB_MODE="offline")
    assert (done.returncode, done.stderr) == (0, "")
    again = program("train", *given, WANDB_MODE="offline")
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout
    (identity,) = {path.suffix or path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert identity == (tmp_path / "wandb" / "run_id").read_text()
    written = b"".join(path.read_bytes() for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    for name in (b"train/block_00/loss", b"test/block_03/accuracy", b"learning_rate"):
        assert name in written
