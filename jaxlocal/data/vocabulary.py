"""What a text is made of: characters, bytes or the tokens of a tokenizer; how it becomes numbers, and text again."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32, Integer


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Numbers for the pieces of a text. Unit and content say all of it, so that a run keeps it.

    Attributes:
      content: what it is made from: the characters, or a tokenizer's file.
      unit: what a piece is: ``character``, ``byte`` or ``token``.
    """

    content: str = dataclasses.field(default="", repr=False)  # a tokenizer's are megabytes
    unit: ClassVar[str]

    def __post_init__(self) -> None:
        """Content that makes no such vocabulary is refused.

        Raises:
          ValueError: if it is that.
        """

    @property
    def size(self) -> int:
        """How many pieces it has."""
        raise NotImplementedError

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """The numbers of a text.

        Raises:
          ValueError: if the text cannot be made of these pieces.
        """
        raise NotImplementedError

    def decode(self, tokens: Integer[np.ndarray, "n"]) -> str:
        """The text of numbers.

        Raises:
          ValueError: if a number is none of the vocabulary's.
        """
        raise NotImplementedError


class Characters(Vocabulary):
    """The characters of a text, sorted, each once."""

    unit = "character"

    def __post_init__(self) -> None:
        """As they are found again by :meth:`encode`."""
        if self.content != "".join(sorted(set(self.content))):
            raise ValueError("the characters of a vocabulary are sorted, each once")

    @classmethod
    def of(cls, text: str) -> "Characters":
        """Those that there are in a text."""
        return cls("".join(sorted(set(text))))

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.content)

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """Places in the order of the characters.

        Raises:
          ValueError: if a character is not there.
        """
        if strange := sorted(set(text) - set(self.content)):
            raise ValueError(f"the character {strange[0]!r} is none of the {self.size} of the text")
        known, codes = (np.frombuffer(x.encode("utf-32-le"), "<u4") for x in (self.content, text))
        return np.searchsorted(known, codes).astype(np.int32)

    def decode(self, tokens: Integer[np.ndarray, "n"]) -> str:
        """The characters at these places.

        Raises:
          ValueError: if there is no such place.
        """
        return "".join(self.content[token] for token in _within(tokens, self.size))


class Bytes(Vocabulary):
    """All 256 of them."""

    unit = "byte"
    size = 256

    def __post_init__(self) -> None:
        """They need no content."""
        if self.content:
            raise ValueError("a vocabulary of bytes has no content")

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """In UTF-8."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Integer[np.ndarray, "n"]) -> str:
        """Of UTF-8; what is none becomes a replacement character.

        Raises:
          ValueError: if a number is no byte.
        """
        return bytes(_within(tokens, self.size)).decode(errors="replace")


class Tokens(Vocabulary):
    """Those of a ``tokenizer.json`` of Hugging Face; without one, numbers that nobody explained.

    Text is neither truncated nor padded, whatever the file says of it, and gets no special tokens but those that
    stand in it.
    """

    unit = "token"

    @functools.cached_property
    def size(self) -> int:
        """The highest number and one more; 0 without a tokenizer."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1) if self.content else 0

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """As the tokenizer does.

        Raises:
          ValueError: if there is no tokenizer, or it knows no token for something.
        """
        tokenizer = self._tokenizer
        try:
            return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        except Exception as error:  # the package raises no other
            raise ValueError(f"the tokenizer cannot encode the text: {error}") from error

    def decode(self, tokens: Integer[np.ndarray, "n"]) -> str:
        """As the tokenizer does, special tokens included.

        Raises:
          ValueError: if there is no tokenizer, or it has no such token.
        """
        tokenizer = self._tokenizer
        numbers = _within(tokens, self.size)
        for number in set(numbers):
            if tokenizer.id_to_token(number) is None:
                raise ValueError(f"the tokenizer has no token {number}")
        return tokenizer.decode(numbers, skip_special_tokens=False)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        if not self.content:
            raise ValueError("these tokens came without a tokenizer: give the tokenizer.json that made them")
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ValueError("a tokenizer.json needs a package: pip install 'jaxlocal[text]'") from error
        try:
            tokenizer = Tokenizer.from_str(self.content)
        except Exception as error:  # the package raises no other
            raise ValueError(f"the tokenizer.json cannot be read: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


VOCABULARIES: Mapping[str, type[Vocabulary]] = {kind.unit: kind for kind in (Characters, Bytes, Tokens)}


def _within(tokens: Integer[np.ndarray, "n"], size: int) -> list[int]:
    """The numbers, all of them from 0, below ``size``."""
    numbers = np.asarray(tokens).tolist()
    for number in numbers:
        if not 0 <= number < size:
            raise ValueError(f"token {number} is none of the vocabulary, which has {size}")
    return numbers
