"""Runs on texts: they go on bit for bit, and are restored where the text is not."""

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.recipe.build import build
from experiments.training.checkpoint import Checkpoints
from experiments.training.trained import restore
from jaxlocal import data
from tests.programs import train
from tests.test_text import written
from tests.test_vocabulary import SAID, tokenizer_of


def config(dataset: str, vocabulary: int, **changes) -> ConfigDict:
    """Two blocks, four steps."""
    c = common.shakespeare()
    c.dataset = dataset
    c.model.update(layers=1, heads=1, features=8, context=8, vocabulary=vocabulary)
    c.rule.name = "greedy"
    c.warmup_steps, c.batch_size, c.eval_batch_size = 1, 4, 8
    c.duration, c.eval_every, c.log_every = "4 steps", "2 steps", "1 steps"
    c.update(changes)
    return c


@pytest.fixture(autouse=True)
def promotion():
    """Optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Configs of each kind, with their files, and the runs they led to."""
    directory = tmp_path_factory.mktemp("texts")
    (directory / "said").write_text(SAID)
    (directory / "tokenizer.json").write_text(tokenizer_of())
    tokens = written(directory / "tokens", np.arange(900) % 99, np.arange(300) % 97)
    tokenizer = str(directory / "tokenizer.json")
    configs = {
        "character": config(f"text:{directory / 'said'}", len(set(SAID))),
        "byte": config(f"bytes:{directory / 'said'}", 256),
        "token": config(tokens, 320),  # the same programs as below
        "tokenizer": config(f"text:{directory / 'said'}", 320, tokenizer=tokenizer),
    }
    with jax.numpy_dtype_promotion("standard"):
        return directory, {kind: (c, train(c, directory / kind)) for kind, c in configs.items()}


def checkpoint(workdir: Path, c: ConfigDict):
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return jax.device_get(checkpoints.restore(4, build(c).init()).blocks)


@pytest.mark.parametrize("kind", ["character", "token"])  # in memory, and in a file
@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_the_whole_one(kind, texts, tmp_path):
    """Metrics and parameters, bit for bit."""
    directory, runs = texts
    c, whole = runs[kind]
    shutil.copytree(directory / kind, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    before = metrics.read_bytes()
    metrics.write_text("".join(line for line in before.decode().splitlines(True) if json.loads(line)["step"] <= 2))
    assert train(c, tmp_path / "cut").history == whole.history
    assert metrics.read_bytes() == before
    chex.assert_trees_all_equal(checkpoint(tmp_path / "cut", c), checkpoint(directory / kind, c))


def gone(monkeypatch) -> None:
    def no(*given):
        raise AssertionError("a data set is loaded")

    monkeypatch.setattr("experiments.recipe.build.load", no)


@pytest.mark.parametrize("kind", ["character", "byte", "tokenizer"])
def test_a_run_alone_reads_and_writes(kind, texts, monkeypatch):
    """As its text does, which is not looked at."""
    directory, runs = texts
    gone(monkeypatch)
    kept = restore(directory / kind).experiment.dataset
    monkeypatch.undo()
    text = build(runs[kind][0]).dataset
    assert kept.decode(kept.encode("to be or not ü")) == "to be or not ü"
    np.testing.assert_array_equal(kept.encode(SAID), text.encode(SAID))
    assert (kept.unit, kept.context, kept.task) == (text.unit, 8, text.task)
    assert (kept.num_train, kept.num_test) == (text.num_train, text.num_test)


def test_a_run_is_restored_without_the_tokenizers_package(texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    kept = restore(texts[0] / "tokenizer").experiment.dataset
    with pytest.raises(ValueError, match="pip install"):
        kept.encode("to be")


def test_a_run_on_bare_tokens_has_no_words(texts):
    kept = restore(texts[0] / "token").experiment.dataset
    assert (kept.unit, kept.task.num_classes, kept.vocabulary.content) == ("token", 320, "")
    with pytest.raises(ValueError, match="came without a tokenizer"):
        kept.decode(np.array([1]))


def test_a_description_says_what_is_not_there(texts):
    run = restore(texts[0] / "byte")
    assert isinstance(run.experiment.dataset, data.Described)
    with pytest.raises(ValueError, match="only its description"):
        run.experiment.evaluate(run.state)
    found = run.with_data().experiment.evaluate(run.state)[0]
    assert [block["loss"] for block in found] == [block["loss"] for block in texts[1]["byte"][1].seeds[0]]


def copied(texts, tmp_path: Path) -> tuple[Path, ConfigDict]:
    """The run on characters, and a text of its own."""
    shutil.copytree(texts[0] / "character", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    record["config"]["dataset"] = f"text:{tmp_path / 'said'}"
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    (tmp_path / "said").write_text(SAID)
    return tmp_path / "run", ConfigDict(record["config"])


def test_another_text_than_the_runs_is_refused(texts, tmp_path):
    """It would mean other characters by the same numbers, or be more of the same."""
    workdir, c = copied(texts, tmp_path)
    restore(workdir).with_data()
    for said, field in ((SAID.replace("T", "S"), "data.vocabulary"), (SAID + SAID, "data.num_test, data.num_train")):
        (tmp_path / "said").write_text(said)
        with pytest.raises(UserError, match=rf"holds a run on other data than these \({field}\): give another --work"):
            train(c, workdir)
    (tmp_path / "said").write_text(SAID.replace("T", "S"))
    with pytest.raises(UserError, match="has another vocabulary than the run's: give the text it had"):
        restore(workdir).with_data()


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "word"},
        {"unit": ["byte"]},
        {"unit": "byte"},
        {"vocabulary": None},
        {"vocabulary": "ba"},
        {"vocabulary": "ab"},
        {"num_classes": 3},
        {"context": 0},
        {"num_train": "9"},
        {"more": 1},
    ],
)
def test_a_damaged_description_is_one_line(change, texts, tmp_path):
    workdir, _ = copied(texts, tmp_path)
    record = json.loads((workdir / "config.json").read_text())
    record["about"]["data"].update(change)
    (workdir / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"config\.json is damaged \(about\.data\): ") as raised:
        restore(workdir)
    assert len(str(raised.value)) < 400
