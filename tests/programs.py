"""Runs the programs as a user does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.recipe.build import build
from experiments.training.loop import train_and_evaluate
from experiments.training.results import Results

ROOT = Path(__file__).parent.parent


def program(module: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *flags],
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def train(config: ConfigDict, workdir: Path, **options: Any) -> Results:
    return train_and_evaluate(build(config), workdir, **options)
