"""Texts: which windows a step reads, and what is said of a text that is none."""

import jax
import numpy as np
import pytest

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.recipe.build import build
from jaxlocal import data
from jaxlocal.executors import ONE_DEVICE, DataParallel


def windows(text: data.Text, steps: range, seeds=(0,), batch_size: int = 4) -> list[np.ndarray]:
    return [np.asarray(x.tokens) for x in text.train(ONE_DEVICE, text.resident(ONE_DEVICE), steps, batch_size, seeds)]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "a text.txt"
    path.write_text("To be, or not to be: that is the question — ünd 問?\n" * 20)
    return f"text:{path}"


def test_shakespeare_is_there():
    """As nanoGPT prepares it: 65 characters, nine tenths to train."""
    text = data.Text("tinyshakespeare", 64)
    assert (text.task.num_classes, text.task.each) == (65, True)
    assert text.characters.startswith("\n !$&',-.3:;?ABC")
    assert (text.num_train, text.num_test) == (1_003_854 // 65, 111_539 // 64)
    first, chunk = next(iter(text.test(ONE_DEVICE, 2)))
    assert first == 2
    assert text.decode(np.asarray(chunk.tokens)[0]).startswith("?\n\nGREMIO:\nGood morrow, neighbour Baptista.")


def test_windows_follow_from_seed_and_step_alone(small):
    text = data.Text(small, 8)
    whole = windows(text, range(6))
    np.testing.assert_array_equal(windows(text, range(3, 6)), whole[3:])
    np.testing.assert_array_equal(windows(data.Text(small, 8), range(6)), whole)
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
    assert text.decode(batch.input[0]) in "To be, or not to be: that is the question — ünd 問?\n" * 3


def test_every_test_character_is_told_once(small):
    text = data.Text(small, 8)
    told = np.concatenate([np.asarray(chunk.tokens)[:, 1:].ravel() for _, chunk in text.test(ONE_DEVICE, 3)])
    assert len(told) == text.num_test * 8
    assert text.decode(told) in "To be, or not to be: that is the question — ünd 問?\n" * 20
    few = data.Text(small, 8, test_examples=2)
    assert [count for count, _ in few.test(ONE_DEVICE, 3)] == [2]


def test_characters_and_back(small):
    text = data.Text(small, 8)
    assert text.decode(text.encode("not ü問")) == "not ü問"
    with pytest.raises(ValueError, match="the character 'x' is none of the"):
        text.encode("xyz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "0 characters make no window of 65"),
        (b"short", "4 characters make no window of 65"),
        (b"\xff\xfe" * 400, "it is not UTF-8"),
    ],
)
def test_what_is_no_text(content, words, tmp_path):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        data.Text(f"text:{path}", 64)


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
    ],
)
def test_what_does_not_go_together_is_one_line(changes, words):
    config = common.shakespeare()
    config.rule.name = "greedy"
    for field, value in changes.items():
        config[field] = type(config)(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=words):
        build(config)
