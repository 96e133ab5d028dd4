"""What is released: an archive and a wheel, installed into an empty environment and run from an empty directory."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import jaxlocal
from tests.programs import ROOT, assert_one_line_error

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Where both are; the wheel is made from what the archive holds."""
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(output), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_the_archives_hold_both_packages_and_no_tests(built):
    name = f"jaxlocal-{jaxlocal.__version__}"
    packages = [ROOT / "jaxlocal", ROOT / "experiments"]
    needed = {path for package in packages for kind in ("py", "xz", "toml") for path in package.rglob(f"*.{kind}")}
    needed = {str(path.relative_to(ROOT)) for path in needed}
    with zipfile.ZipFile(built / f"{name}-py3-none-any.whl") as wheel:
        assert {path for path in wheel.namelist() if ".dist-info/" not in path} == needed
    with tarfile.open(built / f"{name}.tar.gz") as archive:
        held = {member.name.removeprefix(f"{name}/") for member in archive.getmembers() if member.isfile()}
    assert needed | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= held
    assert not any(path.startswith(("tests/", "docs/", "runs/")) for path in held)


def test_the_wheel_runs_from_an_empty_directory(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    (empty := tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TFDS_DATA_DIR")}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    def runs(*command: str | Path) -> str:
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    runs(python, "-m", "pip", "install", "--quiet", wheel, "--constraint", ROOT / "constraints.txt")
    assert "auglocal_digits" in runs(python, "-m", "experiments.train", "--list")
    jax = python.with_name("jaxlocal")
    assert "step 4/4" in runs(jax, "train", "--config=auglocal_digits:smoke", "--workdir=run")
    assert '"step": 4' in runs(python, "-m", "experiments.evaluate", "--workdir=run")
    assert sorted(path.name for path in empty.iterdir()) == ["run"]
    assert_one_line_error(run(jax, "prepare", "--dataset=cifar10"), "pip install 'jaxlocal[prepare]'")
