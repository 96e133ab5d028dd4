"""Several processes that train together: the numbers of one."""

import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments.app.errors import DIVERGED, LOST
from experiments.app.files import read_lines
from tests.programs import ROOT, assert_one_line_error, program

DIGITS = "--config=experiments/configs/auglocal_digits.py:smoke"


def two(*flags: str) -> list[subprocess.Popen]:
    """The training program, as two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "experiments.train",
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        *flags,
    ]
    return [
        subprocess.Popen(
            [*command, f"--process_id={i}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]


def trained(*flags: str) -> None:
    ended = [(process, *process.communicate(timeout=300)) for process in two(*flags)]
    assert [process.returncode for process, *_ in ended] == [0, 0], ended[0][2] + ended[1][2]
    assert "step" not in ended[1][1]  # one of them speaks


@pytest.mark.slow
@pytest.mark.parametrize("way", [["data_parallel=true", "sync_batch_norm=true"], ["executor=pipelined"]])
def test_two_processes_train_as_one_does(way, tmp_path):
    """Metrics of every step, and a run that goes on in one process from what two have saved."""
    flags = [DIGITS, "--config.log_every=1 steps", *(f"--config.{field}" for field in way)]
    trained(*flags, f"--workdir={tmp_path / 'two'}")
    alone = [flag for flag in flags if "data_parallel" not in flag and "executor" not in flag]
    assert program("train", *alone, f"--workdir={tmp_path / 'one'}").returncode == 0
    lines = [read_lines(tmp_path / which / "metrics.jsonl") for which in ("two", "one")]
    assert len(lines[0]) == 5
    for found, expected in zip(*lines, strict=True):
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)
    again = program("train", *alone, f"--workdir={tmp_path / 'two'}")
    assert again.returncode == 0
    assert "is finished: at step 4 of 4" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_the_loss_of_a_process_ends_the_other_and_nothing_is_lost(lost, tmp_path):
    """kill -9 of one: the other says so, or JAX does where it notices first; both go on from the last checkpoint."""
    flags = (
        DIGITS,
        "--config.data_parallel=true",
        "--config.duration=2000 steps",
        "--config.eval_every=10 steps",
        f"--workdir={tmp_path}",
    )
    both = two(*flags)
    assert any(line.startswith("step 20 test") for line in both[0].stdout)
    both[lost].kill()
    _, errors = both[1 - lost].communicate(timeout=120)
    both[lost].communicate()
    assert both[1 - lost].returncode in (LOST, -signal.SIGABRT)
    assert "start all of them again with the same --workdir" in errors or "another task died" in errors
    both = two(*flags)
    assert any(re.search(r"goes on at step \d*0 of 2000", line) for line in both[0].stdout)
    assert any(line.startswith("step ") for line in both[0].stdout)  # it has begun
    both[1].send_signal(signal.SIGTERM)  # one of them is enough
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGTERM
    steps = [line["step"] for line in read_lines(tmp_path / "metrics.jsonl") if line["split"] == "train"]
    assert steps == list(range(2, steps[-1] + 2, 2))  # neither lost nor repeated


@pytest.mark.slow
@pytest.mark.parametrize("way", ["data_parallel=true", "executor=pipelined"])
def test_divergence_ends_all_processes(way, tmp_path):
    """The rate is too high; the first process says which block, and saves the post-mortem."""
    hopeless = [f"--config.{field}" for field in (way, "learning_rate=1e30", "schedule=constant", "warmup_epochs=0")]
    both = two(DIGITS, *hopeless, f"--workdir={tmp_path}")
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [DIVERGED, DIVERGED], errors[0] + errors[1]
    assert re.search(r"^error: block \d+ diverged at step \d+ \(", errors[0], re.MULTILINE)
    assert "Traceback" not in errors[0] + errors[1]
    assert list((tmp_path / "postmortem").glob("step_*.npz"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=localhost:1"], "--num_processes and --process_id not given"),
        (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], "count from 0"),
    ],
)
def test_bad_flags(flags, message, tmp_path):
    assert_one_line_error(program("train", DIGITS, f"--workdir={tmp_path}", *flags), message)
