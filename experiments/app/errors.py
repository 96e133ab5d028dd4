"""What is wrong with what was given, said in one line."""

import contextlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

# Exit codes, beside 128 + the signal that ended a program.
BAD_INPUT = 2
LOST = 3  # another process
DIVERGED = 4
NOT_SAVED = 5

EXHAUSTED = "RESOURCE_EXHAUSTED"  # how JAX says that a device has too little memory
GOES_ON = "; what was saved before is intact, and the same command goes on from there"


class UserError(Exception):
    """What was given is wrong. The message is one line: what was given, what was expected, what to do.

    Attributes:
      code: that the program exits with.
    """

    code = BAD_INPUT

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class NotSavedError(UserError):
    """A workdir cannot be written."""

    code = NOT_SAVED


@contextlib.contextmanager
def user_input(what: str) -> Iterator[None]:
    """Errors raised in here are about ``what``, which the user gave."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def one_of(kind: str, name: str, known: Sequence[str]) -> str:
    """Returns ``name`` if it is known.

    Raises:
      UserError: otherwise, with the nearest known name.
    """
    if name in known:
        return name
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)  # a config may hold anything
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {kind} {name!r}: {hint}known are {', '.join(sorted(known))}")


def one_line(error: BaseException | str) -> str:
    """The first and the last line of a message; what stands between is a traceback."""
    text: Any = error
    while isinstance(text, BaseException) and text.args and isinstance(text, KeyError | AttributeError):
        text = text.args[0]  # str() of these is the repr of what they hold
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return " ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else type(error).__name__
