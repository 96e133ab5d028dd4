"""Files that programs write: whole or not at all, and with one line where it cannot be."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.app.errors import NotSavedError, UserError


@contextlib.contextmanager
def saving(where: Path | str, hint: str = "", kind: type[UserError] = NotSavedError) -> Iterator[None]:
    """Errors raised in here are about writing to ``where``; but for a reader of the output that went away."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise kind(f"{where} cannot be written: {error.strerror or error}{hint}") from error


def directory(path: Path) -> Path:
    """The directory, made if need be.

    Raises:
      UserError: if it cannot be.
    """
    with saving(f"workdir {path}", kind=UserError):
        path.mkdir(parents=True, exist_ok=True)
    return path


def read_lines(path: Path, fields: Sequence[str] = ("step", "split")) -> list[dict[str, Any]]:
    """The lines of a metrics file, or of another whose lines have these fields; a last one cut short is left out.

    Raises:
      UserError: if another line is damaged.
    """
    texts = path.read_bytes().splitlines() if path.exists() else []
    lines = []
    for i, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not set(fields) <= line.keys():
                raise ValueError(f"no {' and '.join(fields)}")
        except ValueError as error:
            if i == len(texts):
                break
            raise UserError(
                f"{path} is damaged in line {i} of {len(texts)} ({error}): mend that line, or give another --workdir"
            ) from error
        lines.append(line)
    return lines


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one piece: readers see the old file or the new one."""
    replace_text(path, json.dumps(content, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one piece, on disk when it returns."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
