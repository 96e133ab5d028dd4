"""How a run looks in a notebook: a place in the cell's output that is written over, not a line for every step."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


class _Place(io.TextIOBase):
    """Shows what was printed last."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def write(self, text: str) -> int:
        if text.strip():
            self._handle.update({"text/plain": text}, raw=True)
        return len(text)


@contextmanager
def printing_in_place() -> Iterator[None]:
    """In a notebook, what is printed in here takes the place of what was printed before; elsewhere nothing changes."""
    if type(sys.stdout).__module__ != "ipykernel.iostream":
        yield
        return
    from IPython.display import display  # there is one where there is a notebook

    with redirect_stdout(_Place(display({"text/plain": ""}, raw=True, display_id=True))):
        yield
