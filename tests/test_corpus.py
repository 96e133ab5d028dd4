"""Files of texts: large ones, and those that hold none."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxlocal import data
from jaxlocal.executors import ONE_DEVICE
from tests.programs import assert_one_line_error, program
from tests.test_text import windows, written


def memory() -> int:
    """Bytes of this process in memory, those of mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", ["tokens", "bytes"])
def test_large_files_are_not_read(kind, tmp_path):
    """8 GiB, of which the disk holds nothing: what is read of them is in memory."""
    for name in ("train.bin", "val.bin"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(8 * 2**30)
    name = f"tokens:{tmp_path}" if kind == "tokens" else f"bytes:{tmp_path / 'train.bin'}"
    before = memory()
    text = data.Text(name, 1024, vocabulary=50304)
    assert all(not window.any() for window in windows(text, range(3), batch_size=12))
    assert next(iter(text.test(ONE_DEVICE, 4)))[0] == 4
    assert memory() - before < 64 * 2**20
    assert text.num_train > 4e6


@pytest.mark.parametrize("split", ["train", "test"])
def test_tokens_outside_the_vocabulary(split, tmp_path):
    """At once if the first window has one, else when a window is cut."""
    tokens = np.zeros(100, int)
    tokens[2] = 65
    parts = (tokens, tokens * 0) if split == "train" else (tokens * 0, tokens)
    with pytest.raises(ValueError, match=rf"split {split}: token 65, at 2, is none of the 65 of the model: give it"):
        data.Text(written(tmp_path / "a", *parts), 8, vocabulary=65)
    text = data.Text(written(tmp_path / "b", *(np.roll(part, 40) for part in parts)), 8, vocabulary=65)
    with pytest.raises(data.UnreadableError, match=f"split {split}: token 65, at 42"):
        windows(text, range(20)) if split == "train" else list(text.test(ONE_DEVICE, 1))


def test_a_file_that_is_cut_off_while_it_is_in_use(tmp_path):
    """One line, where reading what is gone would be the end of the process."""
    text = data.Text(written(tmp_path / "tokens", np.zeros(100_000), np.zeros(30)), 8, vocabulary=2)
    windows(text, range(2))
    os.truncate(tmp_path / "tokens" / "train.bin", 20)
    with pytest.raises(data.UnreadableError, match=r"train\.bin has become shorter while it was in use"):
        windows(text, range(2))


ODD = {
    "nothing": (lambda path: None, "cannot be read: No such file"),
    "a directory": (lambda path: path.mkdir(), "cannot be read: (Is a directory|it is no regular file)"),
    "short": (
        lambda path: path.write_bytes(b"\1\0" * 8),
        r"split train: \d+ (character|byte|token)s make no window of 65",
    ),
    "empty": (lambda path: path.write_bytes(b""), "0 characters make no window|the file is empty"),
}
NAMES = {"text:a": "a", "bytes:a": "a", "tokens:": "train.bin"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("odd", ODD)
def test_files_that_hold_no_text(name, odd, tmp_path):
    make, words = ODD[odd]
    kind, _, rest = name.partition(":")
    np.zeros(900, "<u2").tofile(tmp_path / "val.bin")
    make(tmp_path / NAMES[name])
    with pytest.raises(ValueError, match=words) as raised:
        data.Text(f"{kind}:{tmp_path / rest}", 64, vocabulary=9)
    assert "\n" not in str(raised.value)


def test_other_files_that_hold_no_text(tmp_path, monkeypatch):
    def refused(words: str, name: str, tokenizer: str = "") -> None:
        with pytest.raises(ValueError, match=words):
            data.Text(name, 8, vocabulary=9, tokenizer=tokenizer)

    (tmp_path / "a").write_bytes(b"\xff\xfe" * 400)
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    name = written(tmp_path / "tokens", np.zeros(100), np.zeros(100))
    refused("a cannot be read: it is not UTF-8", f"text:{tmp_path / 'a'}")
    refused("pipe cannot be read: it is no regular file", f"bytes:{tmp_path / 'pipe'}")
    refused("is read by byte, tokenizer x has no part in it", f"bytes:{tmp_path / 'a'}", "x")
    refused(r"tokenizer .*tokenizer\.json cannot be read: No such file", name, str(tmp_path / "tokenizer.json"))
    refused("tokenizer .*empty: the file is empty", name, str(tmp_path / "empty"))
    os.truncate(tmp_path / "tokens" / "val.bin", 199)
    refused(r"tokens .*val\.bin: 199 bytes, expected 2 for each token: write it again", name)
    (tmp_path / "tokens" / "val.bin").unlink()
    refused(r"tokens .*val\.bin cannot be read: No such file", name)

    def no(*given, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no)
    for kind in ("text", "bytes"):
        refused("a cannot be read: Permission denied", f"{kind}:{tmp_path / 'a'}")
    refused(r"train\.bin cannot be read: Permission denied", name)


def test_any_bytes_are_windows_or_one_line(tmp_path):
    """Files as damage leaves them, of any length."""
    rng, read, said = np.random.default_rng(0), 0, []
    for _ in range(300):
        for name in ("train.bin", "val.bin"):
            content = rng.integers(0, rng.choice([3, 128, 256]), rng.integers(0, 60), dtype=np.uint8)
            (tmp_path / name).write_bytes(content.tobytes())
        name = rng.choice(
            [
                f"{kind}:{tmp_path}{rest}"
                for kind, rest in (("tokens", ""), *((kind, "/train.bin") for kind in ("text", "bytes")))
            ]
        )
        try:
            text = data.Text(str(name), int(rng.integers(1, 5)), int(rng.integers(3)), int(rng.choice([3, 300, 2**16])))
            cut = [*windows(text, range(3)), *(np.asarray(x.tokens) for _, x in text.test(ONE_DEVICE, 2))]
            assert all(0 <= x.min() <= x.max() < text.task.num_classes for x in cut)
            read += 1
        except ValueError as error:
            said.append(str(error))
    assert read > 50
    assert len(said) > 50
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tokens:{}/odd", "odd/train.bin: 5 bytes, expected 2 for each token"),
        ("tokens:{}/late", "is none of the 65 of the model"),
        ("bytes:{}/odd", "it is no regular file"),
        ("text:{}/odd/train.bin", "split train: 4 characters make no window of 65"),
    ],
)
def test_the_program_ends_in_one_line(name, words, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "train.bin").write_bytes(b"12345")
    written(tmp_path / "late", np.arange(80_000) // 40_000 * 65, np.zeros(100))
    flags = ["--config=experiments/configs/backprop_shakespeare.py", f"--config.dataset={name.format(tmp_path)}"]
    assert_one_line_error(program("train", *flags, f"--workdir={tmp_path / 'run'}"), words)
