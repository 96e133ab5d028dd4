"""Texts: which windows a step reads, and what is said of a text that is none."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.recipe.build import build
from jaxlocal import data
from jaxlocal.executors import ONE_DEVICE, DataParallel
from tests.test_vocabulary import SAID, tokenizer_of


def windows(text: data.Text, steps: range, seeds=(0,), batch_size: int = 4) -> list[np.ndarray]:
    return [np.asarray(x.tokens) for x in text.train(ONE_DEVICE, text.resident(ONE_DEVICE), steps, batch_size, seeds)]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "a text.txt"
    path.write_text(SAID)
    return f"text:{path}"


def written(directory: Path, train, val=range(30), dtype: str = "<u2") -> str:
    """Tokens as nanoGPT's scripts write them."""
    directory.mkdir(exist_ok=True)
    for name, tokens in (("train", train), ("val", val)):
        np.asarray(tokens, dtype).tofile(directory / f"{name}.bin")
    return f"tokens:{directory}"


@pytest.fixture(params=["character", "byte", "token", "tokenizer"])
def each(request, small, tmp_path) -> data.Text:
    """A small text of each kind, in windows of nine."""
    if request.param == "byte":
        return data.Text(small.replace("text:", "bytes:"), 8)
    if request.param == "token":
        return data.Text(written(tmp_path / "tokens", np.arange(500) % 99), 8, vocabulary=99)
    if request.param == "tokenizer":
        (tmp_path / "tokenizer.json").write_text(tokenizer_of())
        return data.Text(small, 8, tokenizer=str(tmp_path / "tokenizer.json"))
    return data.Text(small, 8)


def test_shakespeare_is_there():
    """As nanoGPT prepares it: 65 characters, nine tenths to train."""
    text = data.Text("tinyshakespeare", 64)
    assert (text.task.num_classes, text.task.each) == (65, True)
    assert text.vocabulary.content.startswith("\n !$&',-.3:;?ABC")
    assert (text.num_train, text.num_test) == (1_003_854 // 65, 111_539 // 64)
    first, chunk = next(iter(text.test(ONE_DEVICE, 2)))
    assert first == 2
    assert text.decode(np.asarray(chunk.tokens)[0]).startswith("?\n\nGREMIO:\nGood morrow, neighbour Baptista.")


def test_windows_follow_from_seed_and_step_alone(each):
    text, whole = each, windows(each, range(6))
    np.testing.assert_array_equal(windows(text, range(3, 6)), whole[3:])
    assert (whole[0] != whole[1]).any()
    together = windows(text, range(2), seeds=(0, 1))
    np.testing.assert_array_equal(together[1][0], whole[1])
    np.testing.assert_array_equal(together[1][1], windows(text, range(1, 2), seeds=(1,))[0])
    two = DataParallel(ONE_DEVICE.devices * 1)
    parts = next(iter(text.train(two, None, range(1), 4, (0,))))
    np.testing.assert_array_equal(np.asarray(parts.tokens).reshape(4, 9), whole[0])


def test_a_window_is_told_the_next_character(small):
    text = data.Text(small, 8)
    batch = text.prepare(data.text.Windows(windows(text, range(1))[0]), jax.random.key(0), train=True)
    np.testing.assert_array_equal(batch.input[:, 1:], batch.label[:, :-1])
    assert text.decode(batch.input[0]) in SAID


def test_every_test_token_is_told_once(each, small):
    told = np.concatenate([np.asarray(chunk.tokens)[:, 1:].ravel() for _, chunk in each.test(ONE_DEVICE, 3)])
    assert len(told) == each.num_test * 8
    np.testing.assert_array_equal(told, each._splits["test"][np.arange(1, 1 + len(told))])
    text = data.Text(small, 8)
    told = np.concatenate([np.asarray(chunk.tokens)[:, 1:].ravel() for _, chunk in text.test(ONE_DEVICE, 3)])
    assert text.decode(told) in SAID
    few = data.Text(small, 8, test_examples=2)
    assert [count for count, _ in few.test(ONE_DEVICE, 3)] == [2]


def test_characters_and_back(small):
    text = data.Text(small, 8)
    assert text.decode(text.encode("not ü問")) == "not ü問"
    with pytest.raises(ValueError, match="the character 'x' is none of the"):
        text.encode("xyz")


def test_bytes_of_any_file(tmp_path):
    """Nine tenths train; 256 tokens, whichever there are."""
    content = bytes(range(255, -1, -1)) * 2
    (tmp_path / "any").write_bytes(content)
    text = data.Text(f"bytes:{tmp_path / 'any'}", 8)
    assert (text.unit, text.task.num_classes, text.num_train, text.num_test) == ("byte", 256, 460 // 9, 51 // 8)
    assert all(bytes(window.astype(np.uint8)) in content[:460] for window in windows(text, range(1))[0])
    told = np.concatenate([np.asarray(chunk.tokens)[:, :-1].ravel() for _, chunk in text.test(ONE_DEVICE, 3)])
    assert bytes(told.astype(np.uint8)) == content[460 : 460 + 48]


def test_tokens_of_nanogpt(tmp_path):
    """16 bits, the lowest first; the network knows more tokens than there are."""
    text = data.Text(written(tmp_path / "gpt2", [50256, 0, 1, 258] * 9), 4, vocabulary=50304)
    assert (tmp_path / "gpt2" / "train.bin").read_bytes()[:4] == b"\x50\xc4\0\0"
    assert (text.unit, text.task.num_classes, text.num_train, text.num_test) == ("token", 50304, 36 // 5, 29 // 4)
    assert {tuple(window[:4]) for window in windows(text, range(9))[0]} <= {
        (50256, 0, 1, 258),
        (0, 1, 258, 50256),
        (1, 258, 50256, 0),
        (258, 50256, 0, 1),
    }
    with pytest.raises(ValueError, match="came without a tokenizer"):
        text.decode(np.array([1]))


def test_a_tokenizer_explains_tokens_and_reads_text(small, tmp_path):
    """A network may know more tokens than it, but not fewer."""
    (tmp_path / "tokenizer.json").write_text(tokenizer_of())
    given = {"tokenizer": str(tmp_path / "tokenizer.json")}
    read = data.Text(small, 8, vocabulary=384, **given)
    assert (read.unit, read.task.num_classes, data.Text(small, 8, vocabulary=65, **given).task.num_classes) == (
        "token",
        384,
        280,
    )
    assert read.decode(windows(read, range(1))[0][0]).strip("\ufffd") in SAID
    name = written(tmp_path / "tokens", read.encode(SAID), read.encode(SAID[:200]))
    written_before = data.Text(name, 8, vocabulary=280, **given)
    assert written_before.decode(written_before.encode("to be")) == "to be"
    first = next(iter(written_before.test(ONE_DEVICE, 1)))[1].tokens[0]
    assert SAID.startswith(written_before.decode(np.asarray(first)))


class Host:
    """One of two hosts, which has half of the devices."""

    devices = ONE_DEVICE.devices

    def __init__(self, which: int) -> None:
        self.which = which

    def replicate(self, tree):
        return tree

    def positions(self, n: int) -> np.ndarray:
        return np.arange(n, dtype=np.int32).reshape(2, -1)[[self.which]]

    def spread(self, data, axes):
        return data


def test_hosts_read_their_own_windows(tmp_path):
    """Together those of one. What is wrong in the windows of the one host, the other does not see."""
    tokens = np.arange(5000) % 97
    text = data.Text(written(tmp_path / "tokens", tokens, tokens[:100]), 8, vocabulary=97)

    def of(host: int, text: data.Text) -> list[np.ndarray]:
        trained = [x.tokens for x in text.train(Host(host), None, range(2), 4, (3,))]
        return [*trained, *(x.tokens for _, x in text.test(Host(host), 4))]

    alone = [*windows(text, range(2), (3,)), *(np.asarray(x.tokens) for _, x in text.test(ONE_DEVICE, 4))]
    for one, first, second in zip(alone, of(0, text), of(1, text), strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second])[:, :, 0].ravel(), one[:, 0])
    tokens[np.random.default_rng((3, 1)).integers(0, 5000 - 8, 4)[3] + 8] = 97  # the last of host 1 in step 1
    other = data.Text(written(tmp_path / "other", tokens, tokens[:100]), 8, vocabulary=97)
    np.testing.assert_array_equal(of(0, other), of(0, text))
    with pytest.raises(data.UnreadableError, match=r"split train: token 97, at \d+, is none of the 97 of the model"):
        of(1, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "digits"}, "model gpt reads tokens, which data set digits has not"),
        ({"model": {"name": "mlp"}}, "is a text, which model mlp does not read: choose gpt"),
        ({"model": {"name": "gpt", "context": 64, "vocabulary": 66}}, "model.vocabulary 66: set it to 65"),
        ({"rule": {"name": "predsim"}}, "predsim gives one answer an example; the task asks for one at every position"),
        ({"warmup_steps": 2000}, "warm up for fewer steps than there are"),
        ({"learning_rate_end": 1.0}, "at most at the learning rate"),
        ({"dataset": "text:/nonexistent"}, "text /nonexistent cannot be read: No such file"),
        ({"dataset": "bytes:pyproject.toml"}, "model.vocabulary 65: set it to 256, as bytes:pyproject.toml has tokens"),
        ({"dataset": "token:x"}, "unknown data set 'token:x': known are .*tinyshakespeare, text:PATH, bytes:PATH, tok"),
        (
            {"dataset": "digits", "model": {"name": "mlp"}, "tokenizer": "t.json"},
            "tokenizer t.json: digits is no text: choose tinyshakespeare, text:PATH",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(changes, words):
    config = common.shakespeare()
    config.rule.name = "greedy"
    for field, value in changes.items():
        config[field] = type(config)(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=words):
        build(config)
