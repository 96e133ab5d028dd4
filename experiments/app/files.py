"""Files that programs write: whole or not at all, and with one line where it cannot be."""

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from experiments.app.errors import NotSavedError, UserError
from jaxlocal.data.own import is_text


@contextlib.contextmanager
def saving(where: Path | str, hint: str = "", kind: type[UserError] = NotSavedError) -> Iterator[None]:
    """Errors raised in here are about writing to ``where``; but for a reader of the output that went away."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise kind(f"{where} cannot be written: {error.strerror or error}{hint}") from error


def given_path(text: str, what: str) -> Path:
    """A path as a user writes it: ``~`` is the home directory, as in a shell.

    Args:
      text: what was given.
      what: the flag or field that it was given to.

    Raises:
      UserError: if it is an address, as ``gs://bucket/run``: files are read and written in file systems only; or if its
        bytes are not UTF-8, which those who write checkpoints and traces cannot take.
    """
    if not is_text(text):
        raise UserError(f"{what}={text}: the name is not UTF-8: rename it, or give another")
    if scheme := re.match(r"([A-Za-z][\w+.-]*)://", text):
        raise UserError(
            f"{what}={text}: {scheme[1]}:// is no file system: give a directory, where the bucket may be mounted"
        )
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def no_pattern(directory: Path) -> Iterator[Path]:
    """Another name of a directory, meanwhile, if its own would be read as a pattern: Orbax and TensorStore do.

    ``run[1]`` would be looked for as ``run1``, and what stands behind a backslash in a directory of its own.
    """
    if not re.search(r"[\\*?\[]", str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="jaxlocal-") as temporary:
        (other := Path(temporary, "link")).symlink_to(directory, target_is_directory=True)
        yield other


def as_directory(name: str) -> str:
    """A name as that of a directory: all but letters, digits, ``.``, ``=`` and ``-`` is ``_``."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")


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


def as_json(content: Any, **options: Any) -> str:
    """JSON, which has no NaN and no infinity: null stands for a number that is none."""
    return json.dumps(finite(content), allow_nan=False, **options)


def finite(content: Any) -> Any:
    """Dicts and lists with None for a number that is none."""
    if isinstance(content, dict):
        return {name: finite(x) for name, x in content.items()}
    if isinstance(content, list | tuple):
        return [finite(x) for x in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one piece: readers see the old file or the new one."""
    replace_text(path, as_json(content, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one piece, on disk when it returns."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several processes may write it
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, bfloat16 among them, which ``safetensors.numpy.load_file`` does not know."""
    with safe_open(str(path), framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
