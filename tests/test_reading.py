"""What a language model makes of given texts: evaluation's numbers, at any length, and what comes next."""

import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.recipe.build import build
from experiments.training import reading
from experiments.training.metrics import exits_of
from experiments.training.reading import lines, read
from experiments.training.trained import Trained
from jaxlocal import Batch, data, losses
from jaxlocal.block import run
from jaxlocal.executors import ONE_DEVICE
from tests.programs import assert_one_line_error, program, train
from tests.test_text_metrics import tiny
from tests.test_vocabulary import SAID, tokenizer_of


@pytest.fixture(scope="module")
def trained() -> Trained:
    experiment = build(tiny("greedy(tokens=2)", "2"))
    state = experiment.init()
    larger = jax.tree.map(lambda x: 8 * x if x.dtype == jnp.float32 else x, state.blocks)  # so that tokens matter
    return Trained(experiment, 0, state.replace(blocks=larger))


def scores(trained: Trained, tokens: np.ndarray) -> list[np.ndarray]:
    """Of every exit at every position of a window, without padding."""
    experiment, batch, carry, exits = trained.experiment, Batch(*[jnp.asarray(tokens)[None]] * 2), None, []
    for i, (block, own) in enumerate(zip(experiment.blocks, trained.state.blocks, strict=True)):
        carry = experiment.feed(i, carry, batch, jax.random.key(0), train=False)
        carry, out = run(block, own.variables, carry, batch, jax.random.key(0), train=False, dtype=jnp.float32)
        exits.append(out.logits[0])
    return exits


def test_the_text_that_is_evaluated_has_the_numbers_of_evaluation(trained, tmp_path):
    chunks = [np.asarray(chunk.tokens) for _, chunk in trained.experiment.dataset.test(ONE_DEVICE, 64)]
    windows = np.concatenate(chunks)
    text = trained.experiment.dataset.decode(np.append(windows[:, :-1], windows[-1, -1]))
    (tmp_path / "a").write_text(text)
    (line,) = lines(trained, [str(tmp_path / "a")])
    expected = exits_of(trained.experiment.evaluate(trained.state)[0])
    assert (line["text"], line["tokens"], len(text)) == (str(tmp_path / "a"), 321, 321)
    for found, exit_ in zip(line["exits"], expected, strict=True):
        assert list(found) == ["nats per character", "bits per character", "perplexity", "accuracy %"]
        assert found["nats per character"] == pytest.approx(exit_["loss"], rel=1e-4)
        assert found["bits per character"] == pytest.approx(exit_["loss"] / math.log(2), rel=1e-4)
        assert found["accuracy %"] == pytest.approx(100 * exit_["accuracy"], rel=1e-4)


@pytest.mark.parametrize("length", [9, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8, 10))])
def test_texts_of_any_length_are_told_in_windows(trained, length, tmp_path):
    """Windows of eight that follow each other; then the last eight tokens say what is next."""
    text = "To be, or not to be: that is"[:length]
    (tmp_path / "a").write_text(text)
    (line,) = lines(trained, [str(tmp_path / "a")])
    tokens = trained.experiment.dataset.encode(text)
    values: list[list[float]] = [[], []]
    for first in range(0, length - 1, 8):
        told = tokens[first + 1 : first + 9]
        for i, logits in enumerate(scores(trained, tokens[first : first + len(told)])):
            values[i] += losses.cross_entropy(logits, jnp.asarray(told)).tolist()
    assert [len(x) for x in values] == [length - 1] * 2
    np.testing.assert_allclose([x["nats per character"] for x in line["exits"]], np.mean(values, axis=1), rtol=1e-4)
    likely = jax.nn.softmax(scores(trained, tokens[-8:])[-1][-1])
    best = np.argsort(-likely)[:3]
    assert [name for name, _ in line["next"]] == [trained.experiment.dataset.decode(np.array([k])) for k in best]
    np.testing.assert_allclose([p for _, p in line["next"]], likely[best], atol=1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "text .*a: 0 characters; give two or more"),
        (b"a", "text .*a: 1 characters; give two or more"),
        ("smörgås".encode(), "text .*a: the character 'å' is none of the 65"),
        (b"\xff\xfe", "text .*a: it is not UTF-8"),
        (None, "text .*a: No such file"),
    ],
)
def test_what_is_no_text_of_the_run_is_one_line(trained, content, words, tmp_path):
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_text("to be")
    wrong, right = lines(trained, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert set(wrong) == {"text", "error"}
    assert re.search(words, wrong["error"])
    assert "\n" not in wrong["error"]
    assert right["tokens"] == 5


def test_a_network_that_diverged_is_one_line(trained, tmp_path):
    (tmp_path / "a").write_text("to be")
    nothing = trained._replace(state=jax.tree.map(lambda x: x if x.ndim < 2 else x * jnp.nan, trained.state))
    with pytest.raises(UserError, match=r"text .*a: the network's scores are NaN: take a checkpoint"):
        next(lines(nothing, [str(tmp_path / "a")]))


def test_other_units_than_characters(trained, tmp_path):
    """Bytes are those of any file; a tokenizer may have more tokens than the network, and the network more than it."""
    (tmp_path / "a").write_bytes(b"\xff\x00")
    (tmp_path / "said").write_text(SAID)
    (tmp_path / "tokenizer.json").write_text(tokenizer_of())
    of_bytes = trained.experiment._replace(dataset=data.Text(f"bytes:{tmp_path / 'said'}", 8))
    with pytest.raises(UserError, match="token 255 is none of the network's 65"):
        read(tmp_path / "a", of_bytes)
    wide = of_bytes._replace(task=of_bytes.dataset.task)
    np.testing.assert_array_equal(read(tmp_path / "a", wide), [255, 0])
    tokens = data.Text(f"text:{tmp_path / 'said'}", 8, tokenizer=str(tmp_path / "tokenizer.json"), vocabulary=320)
    of_tokens = trained.experiment._replace(dataset=tokens, task=tokens.task)
    np.testing.assert_array_equal(read(tmp_path / "said", of_tokens), tokens.encode(SAID))
    assert [reading._named(of_tokens, token) for token in (tokens.encode("b")[0], 319)] == ["b", "token 319"]


@pytest.mark.slow
def test_the_program_reads_texts_and_tells_images_from_them(tmp_path):
    train(tiny("deep_supervision(greedy)", "2"), tmp_path / "run")
    (tmp_path / "one").write_text("To be, or not to be")
    shutil.copy(tmp_path / "one", tmp_path / "two")
    files = [str(tmp_path / name) for name in ("one", "two", "none")]
    done = program("predict", f"--workdir={tmp_path / 'run'}", *files)
    first, second, none = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["text"], second["text"]) == tuple(files[:2])
    assert {**first, "text": ""} == {**second, "text": ""}
    assert set(none) == {"text", "error"}
    assert_one_line_error(done, "1 of 3 files cannot be read", "none: No such file or directory")
    assert_one_line_error(program("predict", f"--workdir={tmp_path / 'run'}"), "no file given")
    config = common.finish(common.digits(), "smoke")
    config.model = {"name": "mlp", "features": (4,)}
    train(config, tmp_path / "digits")
    assert_one_line_error(program("predict", f"--workdir={tmp_path / 'digits'}", files[0]), "no image of the kinds")
