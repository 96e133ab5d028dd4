"""Text as a data set: windows of tokens, each to be told the next one."""

import lzma
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxlocal.data.inputs import Box, Devices
from jaxlocal.feed import Prepare
from jaxlocal.objective import Batch
from jaxlocal.task import Task
from jaxlocal.variables import Key

SHAKESPEARE = "tinyshakespeare"
_TRAINS = 0.9  # of a text, as in nanoGPT


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


def is_text(name: str) -> bool:
    """Whether :class:`Text` takes the name."""
    return name == SHAKESPEARE or name.startswith("text:")


class Text:
    """A text in characters: the first nine tenths train, the others are evaluated.

    Training windows start anywhere; those of a step follow from seed and step alone. To evaluate, the text is cut
    into windows that follow each other.

    Args:
      name: ``tinyshakespeare``, which comes with this package (a million characters by Shakespeare), or ``text:PATH``,
        a file in UTF-8.
      context: t, tokens that a window reads.
      test_examples: windows that are evaluated; 0 for all.

    Raises:
      ValueError: if the file cannot be read, is not UTF-8, or is shorter than a window.
    """

    batch_axes = 0
    ahead = 0

    def __init__(self, name: str, context: int, test_examples: int = 0) -> None:
        text = _read(name)
        self.characters = "".join(sorted(set(text)))
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.frombuffer(self.characters.encode("utf-32-le"), np.uint32)
        tokens = np.searchsorted(known, codes).astype(np.uint16 if len(known) <= 2**16 else np.int32)
        self._train, self._test = np.split(tokens, [int(len(tokens) * _TRAINS)])
        for split, part in (("train", self._train), ("test", self._test)):
            if len(part) <= context:
                raise ValueError(f"{name}, split {split}: {len(part)} characters make no window of {context + 1}")
        self._context = context
        self.prepare: Prepare = told
        self.task = Task(len(known), each=True)
        self.num_train = len(self._train) // (context + 1)
        windows = (len(self._test) - 1) // context
        self.num_test = min(windows, test_examples or windows)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, ``[n]``.

        Raises:
          ValueError: if a character was not in the text that this is.
        """
        if strange := sorted(set(text) - set(self.characters)):
            raise ValueError(f"the character {strange[0]!r} is none of the {len(self.characters)} of the text")
        return np.array([self.characters.index(character) for character in text], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens."""
        return "".join(self.characters[token] for token in tokens)

    def example(self, n: int) -> Batch:
        """Tokens, and for each the next one."""
        tokens: Any = jax.ShapeDtypeStruct((n, self._context), jnp.int32)
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

    def resident(self, devices: Devices) -> Any:
        """Nothing: windows are cut out before they go to the devices."""
        del devices

    def abstract(self, shape: tuple[int, ...]) -> Any:
        """Windows."""
        return Windows(jax.ShapeDtypeStruct((*shape, self._context + 1), jnp.int32))  # type: ignore[arg-type]

    def train(
        self, devices: Devices, resident: Any, steps: range, batch_size: int, seeds: Sequence[int]
    ) -> Generator[Any, None, None]:
        """Windows from anywhere."""
        del resident
        mine, last = devices.positions(batch_size), len(self._train) - self._context
        for step in steps:
            drawn = [np.random.default_rng((seed, step)).integers(0, last, batch_size)[mine] for seed in seeds]
            yield self._windows(self._train, drawn[0] if len(seeds) == 1 else np.stack(drawn), devices)

    def test(self, devices: Devices, batch_size: int) -> Generator[tuple[int, Any], None, None]:
        """Windows one after the other."""
        for first in range(0, self.num_test, batch_size):
            count = min(batch_size, self.num_test - first)
            yield count, self._windows(self._test, (first + devices.positions(count)) * self._context, devices)

    def _windows(self, tokens: np.ndarray, starts: np.ndarray, devices: Devices) -> Windows:
        found = tokens[starts[..., None] + np.arange(self._context + 1)].astype(np.int32)
        return devices.spread(Windows(found), 0)  # type: ignore[arg-type]


def _read(name: str) -> str:
    if name == SHAKESPEARE:
        return lzma.decompress((Path(__file__).parent / "tinyshakespeare.txt.xz").read_bytes()).decode()
    path = Path(name.removeprefix("text:"))
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"text {path} cannot be read: {reason}") from error
