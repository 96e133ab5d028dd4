"""Faults from outside: another run in the workdir, a kill, damaged files, a full disk; and a run that is watched."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import jax
import jax.numpy as jnp
import pytest

from experiments.app.errors import BAD_INPUT, NOT_SAVED, NotSavedError, UserError
from experiments.configs import backprop_shakespeare
from experiments.training import loop
from experiments.training.checkpoint import Checkpoints
from experiments.training.workdir import claimed
from experiments.trials import injected
from experiments.trials.injected import Outcome, small
from experiments.trials.surroundings import mutated
from jaxlocal.executors import TrainState
from tests.programs import ROOT, assert_one_line_error, program, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    outcome = Outcome(small(), workdir)
    assert outcome.code == 0, outcome.errors
    return workdir


def test_a_second_run_in_the_workdir_is_refused(tmp_path):
    config = small()
    with claimed(tmp_path, config, {}, {}):
        with pytest.raises(UserError, match=r"is in use by process \d+ on .*: give another one"):
            train(config, tmp_path)
        assert not (tmp_path / "checkpoints").exists()
    with claimed(tmp_path, config, {}, {}):  # whose it is again
        pass


def test_what_is_trained_is_a_choice_and_the_same_one_in_a_directory(tmp_path):
    """Of a config that is given the length is set, and nothing else."""
    given = backprop_shakespeare.get_config("smoke")
    changed = {key: x for key, x in injected.short(given).items() if x != given[key]}
    assert changed == {"duration": "60 steps", "eval_every": "10 steps", "log_every": "1 steps"}
    with claimed(tmp_path / "whole", small(), {}, {}):
        pass
    config = f"--config={ROOT / 'experiments' / 'configs' / 'backprop_shakespeare.py'}:smoke"
    assert_one_line_error(program("faults", f"--workdir={tmp_path}", config), "whole holds a run with config.")


@pytest.mark.slow
def test_the_lock_ends_with_a_killed_run(tmp_path):
    longer = small(duration="100000 steps")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(Outcome, longer, tmp_path / "run", 60)
        while not (tmp_path / "run" / "checkpoints").exists():
            time.sleep(0.1)
        refused = Outcome(longer, tmp_path / "run")
        assert (refused.code, refused.traceback) == (BAD_INPUT, False)
        assert "is in use by process" in refused.errors
        os.kill(int((tmp_path / "run" / "lock").read_text().split()[1]), signal.SIGKILL)
        assert run.result().code == -signal.SIGKILL
    with claimed(tmp_path / "run", longer, {}, {}):
        pass


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened(whole, tmp_path):
    found = injected.kills(3, whole, tmp_path / "killed", random.Random(0))
    assert (found["injected"], found["lost"]) == (3, 0)


@pytest.mark.slow
def test_files_that_may_not_grow_end_the_run_in_one_line(whole, tmp_path):
    """Nothing is overwritten: without the limit the run goes on, and ends as if there had been none."""
    found = injected.limits(2, whole, tmp_path / "limited", random.Random(0))
    assert found["lost"] == 0
    assert set(found["codes"]) <= {0, 2, NOT_SAVED}


@pytest.mark.parametrize("shapes", [{"w": (4, 3)}, {"v": (2, 3)}, {"w": (2, 3), "v": (1,)}])
def test_a_checkpoint_of_another_version_of_the_code_is_refused(tmp_path, shapes):
    """One line, and it stays where it is."""

    def state(shapes: dict) -> TrainState:
        arrays = {name: jnp.ones(shape) for name, shape in shapes.items()}
        return TrainState(jnp.zeros((), jnp.int32), jax.random.key(0), (arrays,))

    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, state({"w": (2, 3)}))
    with (
        closing(Checkpoints(tmp_path)) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint is intact, .*checkpoints/1 cannot be restored: ") as raised,
    ):
        checkpoints.resume(state(shapes))
    assert "\n" not in str(raised.value)
    assert (tmp_path / "checkpoints" / "1").exists()


def test_a_checkpoint_that_cannot_be_written_ends_in_one_line(tmp_path, monkeypatch):
    """As Orbax has it when a disk is full; what was saved before is there."""
    state = TrainState(jnp.zeros((), jnp.int32), jax.random.key(0), ({"w": jnp.ones(3)},))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()

    def full(*args, **kwargs):
        raise ValueError("DATA_LOSS: Failed to write 9 bytes to file 7: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(NotSavedError, match=r"cannot be written: No space left on device; step 1 is intact") as raised:
        checkpoints.save(2, state)
    assert raised.value.code == NOT_SAVED
    checkpoints.close()


@pytest.mark.slow
def test_every_file_of_a_checkpoint_may_be_cut(whole, tmp_path):
    found = injected.cuts(whole, tmp_path / "cut", ["halved"])
    assert found["injected"] > 10
    assert found["lost"] == 0, found["outcomes"]


@pytest.mark.slow
def test_a_long_run_does_not_grow(tmp_path):
    found = injected.soak(small(), 2000, tmp_path)
    assert found["lost"] == 0, found


@pytest.mark.slow
def test_what_every_evaluation_leaves_behind_is_noticed(tmp_path, monkeypatch):
    kept, finished, evaluated = [], threading.Event(), loop.test

    def leaking(*args, **kwargs):
        kept.append(os.open(os.devnull, os.O_RDONLY))
        threading.Thread(target=finished.wait).start()
        return evaluated(*args, **kwargs)

    monkeypatch.setattr(loop, "test", leaking)
    try:
        assert injected.soak(small(), 2000, tmp_path)["lost"] == 2
    finally:
        finished.set()
        for file in kept:
            os.close(file)


@pytest.mark.slow
def test_images_that_are_damaged_are_read_or_refused_in_one_line():
    found = mutated(60, random.Random(1))
    assert found["lost"] == 0, found["faults"]
    assert min(found["read"], found["refused"]) > 0
