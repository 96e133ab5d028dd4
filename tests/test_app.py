"""What programs are given and what they print: paths, JSON, output that nobody takes."""

import ast
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from experiments.app.errors import UserError
from experiments.app.files import as_json, given_path, write_json
from experiments.app.output import output_may_be_lost
from experiments.app.program import CONFIGS
from experiments.app.usage import headline
from experiments.configs import common
from experiments.recipe.build import build
from experiments.recipe.registry import listing
from experiments.training.record import Recorder
from experiments.training.trained import restore
from experiments.training.workdir import claimed
from tests.programs import ROOT, assert_one_line_error, program, train
from tests.test_programs import digits


def test_the_home_directory_is_found_as_in_a_shell(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_path("~/runs/a", "--workdir") == tmp_path / "runs" / "a"
    assert str(given_path("runs/a~b", "--workdir")) == "runs/a~b"
    assert str(given_path("/tmp/12:30", "--workdir")) == "/tmp/12:30"


@pytest.mark.parametrize("text", ["gs://bucket/run", "s3://bucket/run", "https://host/run", "hdfs://x"])
def test_addresses_are_no_directories(text):
    with pytest.raises(UserError, match=f"--workdir={text}: .* is no file system"):
        given_path(text, "--workdir")


def test_a_path_that_is_no_text_is_refused_where_it_is_given():
    with pytest.raises(UserError, match=r"--workdir=/tmp/\udcff: the name is not UTF-8"):
        given_path("/tmp/\udcff", "--workdir")
    config = common.digits()
    config.data_dir = "/tmp/\udcff"
    with pytest.raises(UserError, match=r"config field data_dir=.*is not UTF-8"):
        build(config)


@pytest.mark.parametrize(
    ("module", "given"),
    [
        ("train", ("--config=experiments/configs/auglocal_digits.py:smoke", "--workdir=gs://b/x")),
        ("memory", ("--models=mlp", "--rules=greedy", "--workdir=s3://b/x")),
        ("report", ("--workdir=gs://b/x",)),
        ("export", ("--workdir=/tmp", "--output=gs://b/x")),
    ],
)
def test_programs_refuse_addresses(module, given):
    assert_one_line_error(program(module, *given), "is no file system")
    assert not any((ROOT / scheme).exists() for scheme in ("gs:", "s3:"))


def test_json_has_null_for_what_is_no_number(tmp_path):
    content = {"loss": [1.5, float("nan"), (float("inf"), None)], "n": 3, "name": "NaN", "x": np.float64("nan")}
    read = {"loss": [1.5, None, [None, None]], "n": 3, "name": "NaN", "x": None}
    assert json.loads(as_json(content), parse_constant=pytest.fail) == read
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == read


@pytest.mark.parametrize("gone", ["reader", "disk"])
def test_output_that_nobody_takes_is_told_once_and_raises_nothing(gone, monkeypatch):
    if gone == "disk":
        stream = open("/dev/full", "w")  # noqa: SIM115
    else:
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    lost = []
    with output_may_be_lost(lost.append):
        for _ in range(3):
            print("x" * 100, flush=True)
    stream.close()
    assert [type(error) for error in lost] == [BrokenPipeError if gone == "reader" else OSError]


@pytest.mark.parametrize("platform", ["cuda", "cpuu"])
def test_a_platform_that_is_not_here_is_one_line(platform, tmp_path):
    given = ("--config=experiments/configs/auglocal_digits.py:smoke", f"--workdir={tmp_path / 'run'}")
    assert_one_line_error(program("train", *given, JAX_PLATFORMS=platform), f"JAX_PLATFORMS={platform}: ", "give cpu")


@pytest.mark.slow
def test_a_device_whose_memory_is_full_is_one_line(tmp_path):
    given = ("--config=experiments/configs/auglocal_cifar10.py:smoke", f"--workdir={tmp_path / 'run'}")
    done = program("train", *given, "--config.dataset=random_32_10_100000000")  # 300 GB
    assert_one_line_error(done, "the device has not enough memory", "a smaller batch_size")


def test_the_library_of_the_programs_defines_no_flag():
    """A caller has flags of its own, ``debug`` perhaps."""
    modules = "experiments.training.loop, experiments.trials.runs, experiments.cost.timed, experiments.pages.report"
    code = (
        f"from absl import flags; known = set(flags.FLAGS); import {modules}; print(sorted(set(flags.FLAGS) - known))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = ast.literal_eval(done.stdout)
    assert not [name for name in found if "debug" in name or "workdir" in name]


def test_a_program_begins_without_what_draws_and_without_another_framework():
    """They would double the time to its first word."""
    code = "import sys, experiments.train; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "tensorboardX", "torch", "tensorflow", "scipy", "sklearn"} & set(
        ast.literal_eval(done.stdout)
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_files_have_no_locks_a_run_trains_with_a_warning(number, monkeypatch, tmp_path, capsys):
    def refuses(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    config = FrozenConfigDict(common.digits())
    with claimed(tmp_path, config, {}, {}):
        assert "cannot be locked" in capsys.readouterr().err
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(UserError, match="cannot be written: broken"), claimed(tmp_path, config, {}, {}):
        pass


NAMES = ["run[1]", *(pytest.param(name, marks=pytest.mark.slow) for name in ("run\\b", "ru*n?", "ä {a,b} %41#"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_a_directory_of_any_name_is_restored(name, tmp_path):
    """Orbax and TensorStore read some names as patterns."""
    workdir = tmp_path / name
    results = train(digits(duration="2 steps", eval_every="2 steps"), workdir)
    found = restore(workdir).with_data()
    assert (found.step, found.experiment.evaluate(found.state)[0][-1]["loss"]) == (2, results.seeds[0][-1]["loss"])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    exported = tmp_path / f"{name} too"
    assert program("export", f"--workdir={workdir}", f"--output={exported}").returncode == 0
    assert (exported / "orbax" / "_CHECKPOINT_METADATA").is_file()


def test_event_files_of_one_second_are_two(tmp_path):
    for _ in range(3):
        Recorder(tmp_path, 0).close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3


@pytest.mark.slow
def test_a_home_where_nothing_can_be_written_is_no_reason_to_end(tmp_path):
    run = ("--config=experiments/configs/auglocal_digits.py:smoke", f"--workdir={tmp_path / 'run'}")
    done = program("train", *run, "--config.duration=2 steps", HOME="/proc/none", JAXLOCAL_CACHE="")
    assert done.returncode == 0, done.stderr
    assert "compilation cache" not in done.stderr


@pytest.mark.parametrize(
    ("name", "own"),
    [("train", "config workdir list num_processes"), ("memory", "rules device"), ("analyze", "data_dir workdir")],
)
def test_help_is_of_the_program_and_its_own_flags(name, own):
    done = program(name, "--help")
    about, flags = done.stdout.split("\nflags:\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert about.splitlines()[0] == headline(ROOT / "experiments" / f"{name}.py")
    assert f"\n    python -m experiments.{name} --" in about
    assert not re.search("``|\\.\\. ", about)
    known = set(re.findall(r"^  --(?:\[no\])?(\w+):", flags, re.MULTILINE))
    assert {*own.split(), "debug"} <= known
    assert not {flag for flag in known if re.search("chex|orbax|tfds|flagfile|undefok|verbosity|^help", flag)}


def test_configs_are_listed_by_the_names_they_go_by():
    listed = re.findall(r"^config +(\w+)  +(.+)", listing(), re.MULTILINE)
    assert dict(listed) == {path.stem: headline(path) for path in CONFIGS.glob("[a-z]*_*.py")}


@pytest.mark.slow
def test_the_command_runs_programs_from_anywhere(tmp_path):
    """Beside a package of the user's that is called as ours, and with configs by name."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise SystemExit('not this one')")

    def jaxlocal(*arguments):
        command = [str(Path(sys.executable).parent / "jaxlocal"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    programs = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert {line.split()[0] for line in jaxlocal().stdout.splitlines() if line.startswith("  ")} == programs
    assert_one_line_error(jaxlocal("trian"), "unknown program 'trian': did you mean 'train'?")
    assert_one_line_error(jaxlocal("show", "--config=auglocal_digts"), "did you mean auglocal_digits.py?")
    done = jaxlocal("show", "--config=auglocal_digits:smoke")
    assert done.returncode == 0, done.stderr
    assert "auglocal" in done.stdout


def test_numbers_of_numpy_and_jax_are_numbers_in_a_config():
    config = common.digits()
    with config.ignore_type():
        config.learning_rate, config.batch_size, config.seed = np.float64(0.25), np.int64(32), jnp.asarray(3)
        config.model.features = (np.int32(8), 8, 8, 8, 8, 8)
    experiment = build(config)
    assert [type(experiment.config[name]) for name in ("learning_rate", "batch_size", "seed")] == [float, int, int]
    assert type(experiment.config.model.features[0]) is int
    json.dumps(experiment.config.to_dict())
