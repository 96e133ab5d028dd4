"""Text as a data set: windows of tokens, each to be told the next one."""

import zlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer

from jaxlocal.data.corpus import read
from jaxlocal.data.images import Box, UnreadableError
from jaxlocal.data.inputs import Devices
from jaxlocal.data.vocabulary import Vocabulary
from jaxlocal.feed import Prepare
from jaxlocal.objective import Batch
from jaxlocal.task import Task
from jaxlocal.variables import Key

ENDS = 2**20  # tokens at either end of a split that tell it from another: of the others may be any number


class Windows(NamedTuple):
    """The examples of one step.

    Attributes:
      tokens: ``[b, t + 1]``: what is read, and one more, which the last position is to tell.
    """

    tokens: Int32[Array, "b n"]


def told(data: Windows, key: Key, *, train: bool) -> Batch:
    """Of windows, what is read and what is told."""
    del key, train
    return Batch(data.tokens[:, :-1], data.tokens[:, 1:])


class Tokenized:
    """What there is to know of a text, but for the text.

    Args:
      vocabulary: what it is made of.
      num_classes: k, tokens that a network tells apart; those of a tokenizer may be fewer.
      context: t, tokens that a window reads.
    """

    batch_axes = 0
    ahead = 0

    def __init__(self, vocabulary: Vocabulary, num_classes: int, context: int) -> None:
        self.vocabulary, self.context = vocabulary, context
        self.task = Task(num_classes, each=True)
        self.prepare: Prepare = told

    classes: tuple[str, ...] = ()  # tokens have a vocabulary

    @property
    def unit(self) -> str:
        """What a token is: ``character``, ``byte`` or ``token``."""
        return self.vocabulary.unit

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """The tokens of a text.

        Raises:
          ValueError: if it cannot be made of the vocabulary.
        """
        return self.vocabulary.encode(text)

    def decode(self, tokens: Integer[np.ndarray, "n"]) -> str:
        """The text of tokens.

        Raises:
          ValueError: if one is none of the vocabulary, or came without a tokenizer.
        """
        return self.vocabulary.decode(tokens)

    def example(self, n: int) -> Batch:
        """Tokens, and for each the next one."""
        tokens: Any = jax.ShapeDtypeStruct((n, self.context), jnp.int32)
        return Batch(tokens, tokens)

    def box(self, width: int, height: int) -> Box:
        """Texts have no images.

        Raises:
          ValueError: always.
        """
        raise ValueError("a text has no images")

    def prototypes(self) -> np.ndarray:
        """Nor prototypes.

        Raises:
          ValueError: always.
        """
        raise ValueError("prototypes of classes need a data set of images: give another model.embedding")


class Text(Tokenized):
    """A text as tokens, of which windows are cut.

    Training windows start anywhere; those of a step follow from seed and step alone. To evaluate, the text is cut
    into windows that follow each other. Of a text in one file the first nine tenths train, the others are evaluated.

    Args:
      name: ``tinyshakespeare``, which comes with this package (a million characters by Shakespeare); ``text:PATH``, a
        file in UTF-8, read by character; ``bytes:PATH``, any file, read by byte; ``tokens:DIR``, the ``train.bin`` and
        ``val.bin`` of nanoGPT's scripts: tokens of 16 bits, lowest byte first. Bytes and tokens stay in their files.
        ``random_text_VOCABULARY_TOKENS`` is noise.
      context: t, tokens that a window reads.
      test_examples: windows that are evaluated; 0 for all.
      vocabulary: tokens that the network tells apart. That of characters and of bytes follows from the text, and a
        tokenizer's may be smaller.
      tokenizer: a ``tokenizer.json``, by which ``text:PATH`` is read, or by which ``tokens:DIR`` was written; "" for
        none.

    Raises:
      ValueError: if a file cannot be read, is not UTF-8, is shorter than a window, or begins with a token outside the
        vocabulary.
    """

    def __init__(
        self, name: str, context: int, test_examples: int = 0, vocabulary: int = 0, tokenizer: str = ""
    ) -> None:
        found, train, test = read(name, tokenizer)
        super().__init__(found, max(found.size, vocabulary) if found.unit == "token" else found.size, context)
        self._name, self._splits = name, {"train": train, "test": test}
        for split, tokens in self._splits.items():
            if len(tokens) <= context:
                raise ValueError(f"{name}, split {split}: {len(tokens)} {self.unit}s make no window of {context + 1}")
            self._cut(split, np.zeros(1, int))
        self.num_train = len(train) // (context + 1)
        windows = (len(test) - 1) // context
        self.num_test = min(windows, test_examples or windows)
        ends = [x[np.r_[: min(ENDS, len(x)), max(0, len(x) - ENDS) : len(x)]] for x in (train, test)]
        self.fingerprint = f"{zlib.crc32(np.concatenate(ends).astype(np.int32).tobytes()):08x} {len(train)} {len(test)}"

    def resident(self, devices: Devices) -> Any:
        """Nothing: windows are cut out before they go to the devices."""
        del devices

    def abstract(self, shape: tuple[int, ...]) -> Any:
        """Windows."""
        return Windows(jax.ShapeDtypeStruct((*shape, self.context + 1), jnp.int32))  # type: ignore[arg-type]

    def train(
        self, devices: Devices, resident: Any, steps: range, batch_size: int, seeds: Sequence[int]
    ) -> Generator[Any, None, None]:
        """Windows from anywhere.

        Raises:
          UnreadableError: if one holds a token outside the vocabulary, or its file was cut off meanwhile.
        """
        del resident
        mine, last = devices.positions(batch_size), len(self._splits["train"]) - self.context
        for step in steps:
            drawn = [np.random.default_rng((seed, step)).integers(0, last, batch_size)[mine] for seed in seeds]
            yield self._windows("train", drawn[0] if len(seeds) == 1 else np.stack(drawn), devices)

    def test(self, devices: Devices, batch_size: int) -> Generator[tuple[int, Any], None, None]:
        """Windows one after the other.

        Raises:
          UnreadableError: likewise.
        """
        for first in range(0, self.num_test, batch_size):
            count = min(batch_size, self.num_test - first)
            starts = (first + devices.positions(count).astype(int)) * self.context
            yield count, self._windows("test", starts, devices)

    def _windows(self, split: str, starts: np.ndarray, devices: Devices) -> Windows:
        return devices.spread(Windows(self._cut(split, starts)), 0)

    def _cut(self, split: str, starts: np.ndarray) -> Any:
        places = starts[..., None] + np.arange(self.context + 1)
        found = self._splits[split][places].astype(np.int32)
        outside = found >= self.task.num_classes
        if outside.any():
            raise UnreadableError(
                f"{self._name}, split {split}: token {found[outside][0]}, at {places[outside][0]}, is none of the "
                f"{self.task.num_classes} of the model: give it a larger vocabulary, or the tokens that belong to it"
            )
        return found
