"""Where the tokens of a text come from: they are made in memory, or stay in a file."""

import dataclasses
import lzma
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from jaxlocal.data.prepared import SHAKESPEARE
from jaxlocal.data.stream import UnreadableError
from jaxlocal.data.vocabulary import Bytes, Characters, Tokens, Vocabulary

_TRAINS = 0.9  # of a text, as in nanoGPT


def read(name: str, tokenizer: str = "") -> tuple[Vocabulary, Any, Any]:
    """The vocabulary of a text, and its tokens: ``[n]`` to train, ``[m]`` to evaluate.

    Args:
      name: as :class:`jaxlocal.data.Text` has it.
      tokenizer: path of a ``tokenizer.json``; "" for none.

    Raises:
      ValueError: if a file cannot be read, or is not what it should be.
    """
    if name.startswith("random_text_"):
        return Tokens(""), *_divided(_noise(name))
    kind, _, path = name.partition(":")
    if kind == "bytes":
        if tokenizer:
            raise ValueError(f"{name} is read by byte, tokenizer {tokenizer} has no part in it: write text:{path}")
        train, test = _divided(_mapped("bytes", Path(path), "u1"))
        return Bytes(), train, test
    tokens = _tokens(tokenizer)
    if kind == "tokens":
        train, test = (_mapped("tokens", Path(path) / f"{part}.bin", "<u2") for part in ("train", "val"))
        return tokens, train, test
    text = _shakespeare() if name == SHAKESPEARE else _content("text", path)
    vocabulary = tokens if tokenizer else Characters.of(text)
    train, test = (vocabulary.encode(part) for part in _divided(text))
    dtype = np.uint16 if vocabulary.size <= 2**16 else np.int32
    return vocabulary, train.astype(dtype), test.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Numbers of a file, which stay there until they are asked for.

    Attributes:
      path: of the file.
      numbers: in it.
      file: of which they are a view.
    """

    path: Path
    numbers: Integer[np.ndarray, "n"]
    file: mmap.mmap

    def __len__(self) -> int:
        """How many there are."""
        return len(self.numbers)

    def __getitem__(self, places: Any) -> Any:
        """A copy of the numbers at these places; of a slice, which are not read.

        Raises:
          UnreadableError: if the file is shorter than it was.
        """
        if isinstance(places, slice):
            return dataclasses.replace(self, numbers=self.numbers[places])
        if self.file.size() < len(self.file):  # to read what is gone would end the process
            raise UnreadableError(f"{self.path} has become shorter while it was in use")
        return self.numbers[places]


def _mapped(what: str, path: Path, dtype: str) -> Mapped:
    """The numbers of a file, none of which is read."""
    width = np.dtype(dtype).itemsize
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait
            raise ValueError(f"{what} {path} cannot be read: it is no regular file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise ValueError(f"{what} {path}: the file is empty")
            if size % width:
                raise ValueError(f"{what} {path}: {size} bytes, expected {width} for each token: write it again")
            whole = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror}") from error
    return Mapped(path, np.frombuffer(whole, dtype), whole)


def _tokens(tokenizer: str) -> Tokens:
    content = _content("tokenizer", tokenizer) if tokenizer else ""
    if tokenizer and not content:
        raise ValueError(f"tokenizer {tokenizer}: the file is empty")
    return Tokens(content)


def _content(what: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"{what} {path} cannot be read: {reason}") from error


def _divided(text: Any) -> tuple[Any, Any]:
    middle = int(len(text) * _TRAINS)
    return text[:middle], text[middle:]


def _noise(name: str) -> Integer[np.ndarray, "n"]:
    match = re.fullmatch(r"random_text_([1-9]\d*)_([1-9]\d*)", name)
    if not match:
        raise ValueError(f"data set {name!r}: write random_text_VOCABULARY_TOKENS, as random_text_50304_100000")
    vocabulary, length = map(int, match.groups())
    return np.random.default_rng(0).integers(0, vocabulary, length, np.int32)


def _shakespeare() -> str:
    return lzma.decompress((Path(__file__).parent / "tinyshakespeare.txt.xz").read_bytes()).decode()
