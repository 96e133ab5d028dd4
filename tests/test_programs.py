"""The programs from end to end: smoke configs, interruption, evaluation, and what they say to bad input."""

import json
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import closing
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from experiments.app.calls import parse_calls
from experiments.app.errors import NotSavedError, UserError
from experiments.app.files import read_lines
from experiments.pages import inside
from experiments.recipe import registry
from experiments.recipe.build import build, rebuilt
from experiments.recipe.fields import parse_duration
from experiments.training.checkpoint import Checkpoints, checksum
from experiments.training.trained import restore
from experiments.training.workdir import claimed
from jaxlocal import data, diagnostics, rules
from tests import pictures
from tests.programs import ROOT, assert_one_line_error, program, train

CONFIGS = sorted((ROOT / "experiments" / "configs").glob("[a-z]*_*.py"))
SLOW = {
    "auglocal_cifar10_resnet110",
    "auglocal_digits_deep",
    "auglocal_vit_cifar10",
    "man_cifar10",
    "auglocal_imagenet",
    "auglocal_stl10",
    "auglocal_svhn",
    "auglocal_cifar10",
    "backprop_cifar10",
    "dgl_cifar10",
    "infopro_cifar10",
    "noprop_cifar10",
    "noprop_cifar100",
    "noprop_mnist",
}
DIGITS = "--config=experiments/configs/auglocal_digits.py:smoke"


def get_config(path: Path, mode: str = "") -> ConfigDict:
    namespace: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace["get_config"](mode)


def table_of(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def digits(**changes) -> ConfigDict:
    config = get_config(ROOT / "experiments" / "configs" / "auglocal_digits.py", "smoke")
    for field, value in changes.items():
        config[field] = ConfigDict(value) if isinstance(value, dict) else value
    return config


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in CONFIGS]
)
def test_every_config_has_a_smoke_form_that_trains(path, tmp_path):
    config = get_config(path, "smoke")
    source = None if data.is_small(config.dataset) else pictures.in_place_of_tfds
    adam = jax.numpy_dtype_promotion("standard")  # optax's mixes integers and floats
    with adam, tfds.testing.mock_data(num_examples=64, as_data_source_fn=source):
        results = train(config, tmp_path)
    assert results.stopped_by is None
    assert [line["step"] for line in results.history if line["split"] == "train"] == [2, 4]
    assert all(np.isfinite(block["loss"]) for block in results.seeds[0])
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["about"] == results.about
    assert about["environment"].keys() >= {"jax", "device"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_carries_its_evidence(path):
    evidence = get_config(path).evidence
    assert f"experiments/configs/{path.name}" in evidence.command
    assert all(evidence[field] for field in ("paper", "expected", "run_time"))


def started(module: str, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"experiments.{module}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen, beginning: str) -> None:
    assert any(line.startswith(beginning) for line in process.stdout)


@pytest.mark.slow
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    """SIGINT saves; the same command goes on; metrics lines are neither lost nor repeated."""
    flags = [DIGITS, "--config.duration=60 steps", "--config.eval_every=20 steps", "--config.log_every=1 steps"]
    flags += ["--config.rule=greedy"]  # a call
    whole = program("train", *flags, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    with started("train", *flags, f"--workdir={tmp_path / 'cut'}") as process:
        read_until(process, "step 23/")
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "SIGINT: saving step" in rest
    assert "is saved; the same command goes on" in rest
    again = program("train", *flags, f"--workdir={tmp_path / 'cut'}")
    assert again.returncode == 0, again.stderr
    assert "goes on at step" in again.stdout
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_an_interrupt_while_a_program_imports_shows_no_traceback():
    # A shell's jobs ignore the signal, and what they start would as well.
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "-X", "importtime", "-m", "experiments.train", "--list"]
    with subprocess.Popen(
        [sys.executable, "-c", heeding, *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert any(line.endswith("| experiments\n") for line in process.stderr)  # the package; then come all others
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    flags = [DIGITS, "--config.duration=400 steps", "--config.eval_every=10 steps", "--config.log_every=1 steps"]
    with started("train", *flags, f"--workdir={tmp_path}") as process:
        read_until(process, "step 37/")
        process.kill()
    config = digits(duration="40 steps", eval_every="10 steps", log_every="1 steps")
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"]["duration"] = "40 steps"
    (tmp_path / "config.json").write_text(json.dumps(content))
    results = train(config, tmp_path)
    steps = [line["step"] for line in results.history if line["split"] == "train"]
    assert steps == list(range(1, 41))


def test_last_and_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    experiment = build(digits())
    state = experiment.init()
    for step, error in ((1, 70.0), (2, 10.0), (3, 50.0), (4, 40.0), (5, 60.0)):
        checkpoints.save(step, state, error)
    checkpoints.save(6, state)
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert (again.step("best"), again.step("last")) == (2, 6)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 5, 6]


def test_checkpoints_of_older_runs_are_judged_by_their_accuracy(tmp_path):
    """Which stands for the error, beside the headline numbers of those that come after."""
    state = build(digits()).init()
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state)
    checkpoints.close()
    for step, accuracy in ((2, 0.9), (3, -1.0)):  # the last was not evaluated
        metrics = {"accuracy": accuracy, "crc32": zlib.crc32(repr(accuracy).encode(), checksum(state))}
        (tmp_path / "checkpoints" / str(step) / "metrics" / "metrics").write_text(json.dumps(metrics))
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.step("best"), checkpoints.step("last")) == (2, 3)
    checkpoints.restore(2, state)
    for step, error, best in ((4, 10.5, 2), (5, 9.5, 5), (6, 9.9, 5)):
        checkpoints.save(step, state, error)
        assert checkpoints.step("best") == best
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [5, 6]
    checkpoints.close()


@pytest.mark.slow
def test_evaluate_and_a_finished_run(tmp_path):
    trained = train(digits(), tmp_path)
    done = program("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["step"] == 4
    np.testing.assert_allclose(result["accuracy"], [block["accuracy"] for block in trained.seeds[0]], atol=1e-6)
    again = train(digits(), tmp_path)
    assert len(again.history) == len(trained.history)
    assert list(again.seeds) == list(trained.seeds)


@pytest.mark.slow
def test_evaluating_leaves_the_workdir_alone(tmp_path):
    train(digits(), tmp_path)
    unfinished = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"  # as a run beside it may be writing
    unfinished.mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert program("evaluate", f"--workdir={tmp_path}").returncode == 0
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(tmp_path / "checkpoints")
    assert_one_line_error(program("evaluate", f"--workdir={tmp_path}"), "no checkpoints")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_compare_writes_a_table_and_a_picture(tmp_path):
    """Rules as calls, two seeds; a second call adds a rule and trains nothing twice."""
    flags = [DIGITS, "--seeds=2", f"--workdir={tmp_path}"]
    done = program("compare", *flags, "--rules=auglocal,man(dgl),backprop")
    assert done.returncode == 0, done.stderr
    rows = table_of((tmp_path / "table.md").read_text())
    assert [row["rule"] for row in rows] == ["auglocal", "man(dgl)", "backprop"]
    assert [row["blocks"] for row in rows] == ["4", "6", "1"]
    assert all("±" in row["last exit, error %"] for row in rows)
    assert rows[-1]["time ÷ backprop's"] == rows[-1]["memory ÷ backprop's"] == "1.00"
    shown = ("rule", "blocks", "last exit, error %", "memory ÷ backprop's", "time ÷ backprop's", "memory MiB")
    assert table_of(done.stdout) == [{title: row[title] for title in shown} for row in rows]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    metrics = tmp_path / "man_dgl" / "seed_1" / "metrics.jsonl"
    before = metrics.stat().st_mtime, metrics.read_text()
    again = program("compare", *flags, "--rules=man(dgl),greedy", "--columns=heads,blocks")
    assert again.returncode == 0, again.stderr
    assert [list(row) for row in table_of(again.stdout)] == [["rule", "in heads", "blocks"]] * 2
    assert "measuring greedy" in again.stdout
    assert "measuring man(dgl)" not in again.stdout
    assert metrics.read_text() == before[1]
    assert "is finished" in again.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rules=auglocl"], ["'auglocl'", "did you mean 'auglocal'"]),
        (["--rules=auglocal,auglocal()"], ["directory"]),
        (["--rules=dgl", "--equal_flops=auglocal,dgl"], ["one rule"]),
        (["--config.seeds=2"], ["--seeds"]),
        (["--columns=memry"], ["'memry'", "did you mean 'memory'", "blocks"]),
        (["--columns="], ["--columns"]),
    ],
)
def test_bad_comparisons_get_one_line(tmp_path, flags, words):
    assert_one_line_error(program("compare", DIGITS, f"--workdir={tmp_path}", *flags), *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dgl(", "write calls"),
        ("dgl,dgl", "name each once"),
        ("dgl(1)", "write calls"),
        ("dgl(name='greedy')", "write calls"),
        ("man", r"write man\(dgl\)"),
        ("auglocal(depth=high)", "depth=high is no number"),
        ("man(dgl, decay=2.0)", "decay 2.0"),
        ("man(man(dgl))", "man goes around"),
        ("man(deep_supervision(dgl))", "man goes around"),
        ("deep_supervision(man(dgl))", "deep_supervision is one block"),
    ],
)
def test_bad_rules_get_one_line(text, message):
    def built():
        return [build(digits(rule=spec)) for spec in parse_calls(text, "rules", {"name": "auglocal"}).values()]

    with pytest.raises(UserError, match=message):
        built()


def test_rules_are_written_as_calls():
    own = {"name": "auglocal", "depth": 3}
    assert parse_calls("auglocal, man(infopro(contrast=True), decay=0.9), auglocal(depth=1)", "rules", own) == {
        "auglocal": own,
        "man(infopro(contrast=True), decay=0.9)": {
            "name": "man",
            "rule": {"name": "infopro", "contrast": True},
            "decay": 0.9,
        },
        "auglocal(depth=1)": {"name": "auglocal", "depth": 1},
    }


def test_a_rule_of_ones_own_may_lack_annotations_but_not_what_programs_need(monkeypatch):
    def mine(weight=1.0):
        return lambda network, task: rules.greedy()(network, task)

    def without_network():
        return lambda network, task: rules.greedy()(network, task)[1]

    for rule in (mine, without_network):
        monkeypatch.setitem(registry.RULES, rule.__name__, rule)
    build(digits(rule={"name": "mine", "weight": 2}))
    with pytest.raises(UserError, match=r"without_network has to return \(network, LocalRule\)"):
        build(digits(rule={"name": "without_network"}))


@pytest.mark.slow
def test_compare_brings_rules_to_equal_flops(tmp_path):
    flags = ["--rules=auglocal,dgl", "--equal_flops=auglocal", "--batch_seeds", "--seeds=2"]
    done = program("compare", DIGITS, *flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = table_of((tmp_path / "table.md").read_text())
    flops = {row["rule"]: float(row["MFLOP / example"]) for row in rows}
    assert flops["dgl"] == pytest.approx(flops["auglocal"], rel=0.03)
    assert "'width'" not in next(line for line in done.stdout.splitlines() if line.startswith("auglocal:"))
    assert (tmp_path / "dgl" / "seeds_0_to_1" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(tmp_path):
    flags = [DIGITS, "--config.duration=60 steps", "--config.log_every=1 steps", f"--workdir={tmp_path}"]
    flags += ["--rules=greedy,backprop", "--seeds=2"]
    with started("compare", *flags) as process:
        read_until(process, "greedy: ")
        read_until(process, "step 3/")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    again = program("compare", *flags)
    assert again.returncode == 0, again.stderr
    assert "measuring" not in again.stdout
    assert "goes on at step" in again.stdout
    for path in tmp_path.glob("*/seed_*/metrics.jsonl"):
        steps = [line["step"] for line in read_lines(path) if line["split"] == "train"]
        assert steps == list(range(1, 61))


@pytest.mark.slow
def test_seeds_trained_together_are_those_trained_alone(tmp_path):
    """The same numbers at the first logged step; then rounding, which differs, grows with every update."""
    together = train(digits(seed=5, seeds=2), tmp_path / "together")
    for i in range(2):
        alone = train(digits(seed=5 + i), tmp_path / f"{i}")
        mine = [line for line in together.history if line["seed"] == 5 + i]
        assert [(line["step"], line["split"]) for line in mine] == [(n["step"], n["split"]) for n in alone.history]
        np.testing.assert_allclose(mine[0]["loss"], alone.history[0]["loss"], rtol=1e-4)
    done = program("evaluate", f"--workdir={tmp_path / 'together'}")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["seed"] for line in lines] == [5, 6]
    for line, exits in zip(lines, together.seeds, strict=True):
        np.testing.assert_allclose(line["loss"], [block["loss"] for block in exits], rtol=1e-5)


def test_accumulated_batches_make_the_update_of_one_large_batch():
    """Without batch norm, two batches of 16 and one of 32 are the same examples and the same update."""
    states = []
    for batch_size, accumulate in ((32, 1), (16, 2)):
        model, rule = {"name": "mlp", "features": (32, 32)}, {"name": "greedy"}
        config = digits(model=model, rule=rule, batch_size=batch_size, accumulate=accumulate)
        experiment = build(config)
        state = experiment.init()
        before = jax.tree.map(np.asarray, state.blocks[0].variables["params"])
        for step in range(accumulate):
            batch = experiment.data_of(step)
            with jax.numpy_dtype_promotion("standard"):  # MultiSteps counts in integers
                state, _ = experiment.executor.step(state, batch)
        states.append([block.variables["params"] for block in state.blocks])
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-7)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(states[0][0], before, rtol=1e-5, atol=1e-7)


def test_list_names_everything():
    listing = program("train", "--list").stdout
    for name in (*registry.RULES, *registry.MODELS, "cifar10", "stl10", "imagenet2012"):
        assert name in listing


def test_tensorboard_events_are_written(tmp_path):
    train(digits(), tmp_path)
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir=/tmp/x"], ["--config"]),
        ([DIGITS], ["--workdir"]),
        ([DIGITS, "--workdir=/tmp/x", "--nonsense=1"], ["nonsense"]),
        ([DIGITS, "--workdir=/tmp/x", "--config.rule.dept=3"], ["--config.rule.dept", '"depth"']),
        ([DIGITS, "--workdir=/tmp/x", "--config.rule.depth=two"], ["two"]),
        ([DIGITS, "--workdir=/tmp/x", "--config.rule=dgl,greedy"], ["--config.rule=dgl,greedy", "one call"]),
        (["--config=experiments/configs/auglocal_digit.py", "--workdir=/tmp/x"], ["did you mean auglocal_digits.py"]),
        ([DIGITS, "--workdir=/tmp/x", "stray"], ["stray"]),
        (["--config=experiments/configs/none.py", "--workdir=/tmp/x"], ["none.py"]),
        (["--config=experiments/configs/auglocal_digits.py:smok", "--workdir=/tmp/x"], ["smok"]),
        ([DIGITS, "--workdir=/proc/nowhere"], ["/proc/nowhere", "cannot be written"]),
        ([DIGITS, "--workdir=README.md/run"], ["README.md/run", "cannot be written", "README.md is no directory"]),
        (["--config=experiments/configs/auglocal_cifar10.py", "--workdir=/tmp/x"], ["experiments.prepare"]),
    ],
)
def test_bad_flags_get_one_line(flags, words):
    assert_one_line_error(program("train", *flags), *words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "cifar11"}, r"unknown data set 'cifar11': did you mean 'cifar10'\?"),
        ({"dtype": "float16"}, r"unknown dtype 'float16'"),
        ({"rule": {"name": "auglocl"}}, r"unknown rule 'auglocl': did you mean 'auglocal'\?"),
        ({"model": {"name": "resnet", "depht": 20}}, r"parameter of model resnet: 'depht': did you mean 'depth'\?"),
        ({"model": {"name": "resnet", "depth": 21}}, r"model resnet: .* 6n \+ 2"),
        ({"rule": {"name": "auglocal", "depth": 0}}, r"depth is 1 or more"),
        ({"rule": {"name": "auglocal", "depth": 5}}, r"depth 5 merges the last 6 of 6 blocks"),
        ({"cuts": "1,9"}, r"cuts \(1, 9\) do not fit a network of 6 units"),
        ({"cuts": "even:7"}, r"cannot cut 6 units into 7 blocks"),
        ({"cuts": "some"}, r"write all, even:K"),
        ({"cuts": "balanced:7"}, r"cannot cut 6 units into 7 blocks"),
        ({"rule": {"name": "man"}}, r"rule man wraps another rule: give rule.rule.name"),
        ({"rule": {"name": "man", "rule": {"name": "dg"}}}, r"unknown rule 'dg': did you mean 'dgl'"),
        ({"rule": {"name": "man", "rule": {"name": "dgl"}, "start": "now"}}, r"start 'now' given"),
        ({"rule": {"name": "infopro", "label": (1.0, 2.0, 3.0)}}, r"one for each of 5 heads"),
        ({"rule": {"name": "predsim", "similarity": 0.0, "prediction": 0.0}}, r"give one of them above 0"),
        ({"accumulate": 0}, r"accumulate 0"),
        ({"accumulate": 5}, r"accumulate 5 of 4 steps"),
        ({"seeds": 0}, r"seeds 0"),
        ({"seed": 2**32}, r"seed 4294967296, .*below 2\^32"),
        ({"executor": "pipelined", "stages": -1}, r"stages -1"),
        ({"duration": f"{'9' * 400} steps"}, r"duration '9+ steps': write a positive number"),
        ({"duration": "9999999999 steps"}, r"choose fewer than 2\^31"),
        ({"learning_rate": 1e39}, r"config field learning_rate=1e\+39: expected float"),
        ({"optimizer": {"name": "adamw", "b2": 1.0}}, r"optimizer adamw: b1 0.9, b2 1.0"),
        ({"optimizer": {"name": "sgd", "momentum": 1.0}}, r"optimizer sgd: momentum 1.0"),
        ({"dataset": "random_10000000_10_100"}, r"data set random_10000000_10_100 cannot be read"),
        ({"seed": -1}, r"seed -1, seeds 1, accumulate 1: choose 0 or more"),
        ({"log_every": "0 steps"}, r"log_every '0 steps'"),
        ({"schedule": "cosine", "duration": "1 epochs"}, r"never reach the learning rate"),
        ({"schedule": "cosine", "duration": "2 epochs"}, r"2 epochs with 2 of warm-up"),
        ({"schedule": "linear"}, r"unknown schedule 'linear'"),
        ({"schedule": "steps"}, r"milestones '', decay 0.1: write the epochs"),
        ({"schedule": "steps", "milestones": "8,4"}, r"milestones '8,4'"),
        ({"schedule": "steps", "milestones": "4", "decay": 0.0}, r"decay 0.0"),
        ({"learning_rate": -1.0}, r"learning_rate -1.0"),
        ({"rule": {"name": "backprop", "depth": 2}}, r"rule backprop takes no parameters, but the config sets 'depth'"),
        ({"rule": {"depth": 2}}, r"config field rule has no name"),
        ({"model": {"name": "convnet", "strides": (1, 2)}}, r"model convnet: features"),
        ({"learning_rate": float("nan")}, r"config field learning_rate=nan: expected float"),
        ({"model": {"name": "mlp", "features": 8}}, r"model mlp: features=8: expected Sequence\[int\]"),
        ({"model": {"name": "mlp", "features": (8, True)}}, r"model mlp: features=\(8, True\): expected"),
        (
            {"model": {"name": "noprop"}, "rule": {"name": "dfa"}},
            r"which rule dfa cannot read: choose one of backprop, noprop_",
        ),
        ({"rule": {"name": "tpsgd", "bound": "3"}}, r"rule tpsgd: bound='3': expected float \| None"),
        ({"optimizer": {"name": "sgd", "momentum": float("inf")}}, r"optimizer sgd: momentum=inf: expected float"),
        ({"batch_size": 5000}, r"batch size 5000 with 1437 examples"),
        ({"duration": "4 weeks"}, r"duration '4 weeks': write a positive number of epochs or steps"),
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0"),
        ({"eval_batch_size": 0}, r"eval_batch_size 0"),
        ({"optimizer": {"name": "adam"}}, r"unknown optimizer 'adam': did you mean 'adamw'\?"),
    ],
)
def test_bad_configs_get_one_line(changes, message):
    with pytest.raises(UserError, match=message) as raised:
        build(digits(**changes))
    assert "\n" not in str(raised.value)


def test_the_rate_falls_after_its_milestones():
    """The first step of the second epoch is the first at a tenth, that of the fourth at a hundredth."""
    experiment = build(digits(schedule="steps", milestones="1,3", decay=0.1, learning_rate=0.5))
    steps = experiment.steps_per_epoch * np.arange(5)
    rates = [float(experiment.schedule(step)) for step in (*steps, *(steps[1:] - 1))]
    np.testing.assert_allclose(rates, [0.5, 0.05, 0.05, 0.005, 0.005, 0.5, 0.05, 0.05, 0.005], rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": "64"},
        {"learning_rate": None},
        {"cuts": 3},
        {"duration": 400},
        {"dtype": None},
        {"label_smoothing": "0.1"},
        {"augment": 1},
        {"seed": True},
    ],
)
def test_fields_of_another_type_get_one_line(change):
    content = {**digits().to_dict(), **change}
    with pytest.raises(UserError, match=rf"config field {next(iter(change))}=.*: expected"):
        build(ConfigDict(content))


def test_an_unknown_field_gets_one_line():
    with pytest.raises(UserError, match=r"unknown config field 'lerning_rate': did you mean 'learning_rate'\?"):
        build(ConfigDict({**digits().to_dict(), "lerning_rate": 0.1}))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (data.Split(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32)), "split train is empty"),
        (data.Split(np.full((3, 2, 2, 1), 9, np.uint8), np.arange(3, dtype=np.int32)), "labels 0 to 2: 2 classes"),
        (data.Split(np.full((3, 2, 2, 1), 9, np.uint8), np.zeros(2, np.int32)), "and 2 labels"),
        (data.Split(np.full((3, 4, 4, 1), 9, np.uint8), np.zeros(3, np.int32)), "give both one shape"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(split, message):
    good = data.Split(np.full((3, 2, 2, 1), 9, np.uint8), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=message):
        data.InMemory(data.Dataset("digits", 2, split, good))


@pytest.mark.parametrize("field", ["warmup_start", "dtype"])
def test_a_missing_field_gets_one_line(field):
    content = digits().to_dict()
    del content[field]
    with pytest.raises(UserError, match=rf"no field '{field}'"):
        build(ConfigDict(content))


def test_a_workdir_of_another_config_is_refused(tmp_path):
    train(digits(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"config.seed=0, now 1 is given"):
        train(digits(seed=1), tmp_path)
    train(digits(eval_batch_size=7), tmp_path)  # nothing that the run's results depend on
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_other_code_than_a_run_was_begun_by_is_named(tmp_path, capsys):
    for code, warned in (("a", False), ("a", False), ("b", True)):
        with claimed(tmp_path, digits(), {}, {"code": code}):
            assert ("begun by other code" in capsys.readouterr().err) == warned


def test_a_run_whose_environment_is_no_table_is_damaged(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": digits().to_dict(), "environment": []}))
    with (
        pytest.raises(UserError, match=r"is damaged \(field 'environment'"),
        claimed(tmp_path, digits(), {}, {"code": "a"}),
    ):
        pass


def flip_a_byte(checkpoint: Path) -> None:
    path = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped byte": flip_a_byte,
    "missing tensors": lambda path: shutil.rmtree(path / "state"),
    "empty": lambda path: [shutil.rmtree(child) for child in path.iterdir() if child.is_dir()],
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(tmp_path, damage, capfd):
    """The run goes on from the one before, and ends as if nothing had happened."""
    whole = train(digits(eval_every="2 steps"), tmp_path)
    expected = (tmp_path / "metrics.jsonl").read_text()
    DAMAGES[damage](tmp_path / "checkpoints" / "4")
    assert_one_line_error(program("evaluate", f"--workdir={tmp_path}"), "checkpoints/4", "cannot be restored")
    again = train(digits(eval_every="2 steps"), tmp_path)
    assert "warning: checkpoint" in capfd.readouterr().err
    assert (tmp_path / "damaged" / "4").exists()
    assert list(again.seeds) == list(whole.seeds)
    assert (tmp_path / "metrics.jsonl").read_text() == expected


@pytest.mark.slow
def test_a_step_that_is_damaged_again_is_set_aside_again(tmp_path, capfd):
    config = digits(eval_every="2 steps")
    train(config, tmp_path)
    for name in ("4", "4.1"):
        flip_a_byte(tmp_path / "checkpoints" / "4")
        train(config, tmp_path)
        assert f"it is in {tmp_path / 'damaged' / name} now" in capfd.readouterr().err
    assert restore(tmp_path).step == 4


def metrics_of(*bits: str):
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "metrics" / "metrics"
        text = path.read_text()
        path.write_text(text.replace(*bits) if bits else "")

    return damage


ALONE = {
    "flipped byte": (flip_a_byte, "cannot be restored"),
    "empty metrics": (metrics_of(), "has damaged metrics"),
    "metrics of another name": (metrics_of("headline", "haedline"), "has damaged metrics"),
    "metrics of another value": (metrics_of('headline": ', 'headline": 1'), "do not have the checksum"),
}


@pytest.mark.parametrize("damage", ALONE)
def test_nothing_is_lost_when_no_checkpoint_is_intact(tmp_path, damage):
    train(digits(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    hurt, said = ALONE[damage]
    hurt(tmp_path / "checkpoints" / "4")
    with pytest.raises(UserError, match=rf"no checkpoint is intact, give another --workdir .*{said}"):
        train(digits(), tmp_path)
    assert (tmp_path / "checkpoints" / "4").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_checkpoint_before_the_last_one_is_not_lost_in_silence(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = build(digits()).init()
    checkpoints.save(2, state)
    with pytest.raises(NotSavedError, match="step 1 is not later than those that are there; step 2 is intact"):
        checkpoints.save(1, state)
    checkpoints.close()


def test_best_is_none_until_something_was_evaluated(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, build(digits()).init())
    assert (checkpoints.step("last"), checkpoints.step("best")) == (1, None)
    checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [7, 100])
def test_evaluation_does_not_depend_on_its_batch(batch_size):
    experiment = build(digits())
    state = experiment.init()
    (got,), (expected,) = (rebuilt(experiment, eval_batch_size=n).evaluate(state) for n in (batch_size, 50))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_label_smoothing_reaches_the_loss():
    losses = []
    for smoothing in (0.0, 0.5):
        config = digits(label_smoothing=smoothing)
        experiment = build(config)
        losses.append(experiment.evaluate(experiment.init())[0][0]["loss"])
    assert losses[0] != losses[1]


WRONG = [{"a.b": 1}, {"stages": "x"}, {"start_from": 1}]


@pytest.mark.parametrize("content", [None, "{", "[]", *(json.dumps({"config": config}) for config in WRONG)])
def test_evaluate_without_a_run(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert_one_line_error(program("evaluate", f"--workdir={tmp_path}"), "config")


def test_prepare_says_what_it_needs():
    assert_one_line_error(program("prepare"), "--dataset", "cifar10")
    assert_one_line_error(program("prepare", "--dataset=cifar"), "'cifar'", "cifar10")
    assert_one_line_error(program("prepare", "--dataset=tinyshakespeare"), "this one needs no preparing")
    assert_one_line_error(program("prepare", "--dataset=cifar10"), "TensorFlow", "pip install 'jaxlocal[prepare]'")


@pytest.mark.parametrize(
    ("text", "expected"), [("400 epochs", (400, True)), ("1 step", (1, False)), ("0.5epoch", (0.5, True))]
)
def test_durations(text, expected):
    assert parse_duration(text) == expected


def test_a_metrics_file_cut_short_loses_only_its_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "test"}\n{"step": 2, "split": "test"}\n{"st')
    assert [line["step"] for line in read_lines(path)] == [1, 2]


@pytest.mark.parametrize(
    "damaged", [b'{"step": 1,', *(pytest.param(line, marks=pytest.mark.slow) for line in (b"\xff", b"7", b"{}"))]
)
def test_a_damaged_line_between_others_ends_in_one_line(tmp_path, damaged):
    train(digits(), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    content = b"\n".join([lines[0], damaged, *lines[2:]])
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged in line 2 of 3"):
        train(digits(), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_a_run_whose_test_loss_was_not_finite_is_shown_again(tmp_path):
    train(digits(), tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["loss"][0] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert np.isnan(train(digits(), tmp_path).seeds[0][0]["loss"])


def test_a_workdir_that_cannot_be_one_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        train(digits(), tmp_path / ("x" * 300))
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"cannot be written"):
        train(digits(), tmp_path)


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_run_without_a_traceback(tmp_path):
    flags = [DIGITS, "--config.duration=400 steps", "--config.log_every=1 steps", f"--workdir={tmp_path}"]
    command = [sys.executable, "-m", "experiments.train", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
    assert 0 < saved_step(tmp_path) < 400


def saved_step(workdir: Path) -> int | None:
    with closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.step("last")


@pytest.mark.slow
def test_a_terminal_that_is_closed_and_output_that_is_full_lose_nothing(tmp_path):
    """SIGHUP saves; a run whose output nobody can take goes to its end."""
    flags = [DIGITS, "--config.duration=400 steps", "--config.log_every=1 steps"]
    command = [sys.executable, "-m", "experiments.train", *flags]
    closed = [*command, f"--workdir={tmp_path / 'closed'}"]
    with subprocess.Popen(closed, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        read_until(process, "step 1/")
        process.send_signal(signal.SIGHUP)
        assert "SIGHUP: saving step" in process.stdout.read()
    assert process.returncode == 128 + signal.SIGHUP
    assert 0 < saved_step(tmp_path / "closed") < 400
    short = [*command, "--config.duration=20 steps", f"--workdir={tmp_path / 'full'}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(short, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert saved_step(tmp_path / "full") == 20


@pytest.mark.slow
def test_a_run_with_offloaded_states_is_looked_at_without_them(tmp_path):
    train(digits(executor="streamed+offload"), tmp_path)
    run = restore(tmp_path).with_data()
    batch = next(inside.batches(run, "test", 4))
    seen = diagnostics.observe(run.experiment.blocks, run.experiment.feed, run.state, batch, dtype=np.float32)
    assert len(seen.units) == 6


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy(tmp_path):
    """AugLocal on digits, at full length: at least 98% at the last exit, within two minutes of training."""
    began = time.monotonic()
    config = get_config(ROOT / "experiments" / "configs" / "auglocal_digits.py")
    results = train(config, tmp_path)
    assert results.seeds[0][-1]["accuracy"] >= 0.98
    print(f"trained in {time.monotonic() - began:.0f} s")
