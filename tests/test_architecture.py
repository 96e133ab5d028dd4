"""Imports point one way, and the library stays pure."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module may import from its own layer's row and the rows above it.
LAYERS = [
    ("axis", "convolution", "guard", "target", "variables"),
    ("network", "losses", "layers", "diffusion"),
    ("scores", "task"),
    ("bridge", "heads", "models", "objective", "sequential"),
    ("feed", "data", "readouts", "unembedding"),
    ("rule",),
    ("block",),
    ("executors", "sampling"),
    ("rules",),
    ("diagnostics",),
]
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
FILES = [
    path
    for path in sorted((ROOT / "jaxlocal").rglob("*.py"))
    if path.parent != ROOT / "jaxlocal" or path.stem != "__init__"
]


# A folder of experiments/ may import from itself and from the rows above its own; a program from all of them.
FLOORS = [
    ("app", "configs", "drawing"),
    ("recipe",),
    ("cost", "reference", "training"),
    ("pages", "trials"),
    ("a program",),
]
FLOOR = {name: level for level, row in enumerate(FLOORS) for name in row}
HOUSE = [path for path in sorted((ROOT / "experiments").rglob("*.py")) if path.stem != "__init__"]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in HOUSE}


def folder(path: Path) -> str:
    return "a program" if path.parent.name == "experiments" else path.parent.name


def modules_of_the_house(path: Path) -> set[str]:
    """What a file imports of experiments/."""
    return {module for name in imported(path) for module in (name, name.rpartition(".")[0]) if module in MODULES}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT / "jaxlocal").parts[0].removesuffix(".py")
    for name in imported(path):
        package, *parts = name.split(".")
        assert package != "experiments"
        if package == "jaxlocal":
            assert LEVEL[parts[0]] <= LEVEL[own], f"{own} imports {parts[0]}"


@pytest.mark.parametrize("path", HOUSE, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_a_program_and_a_folder_is_library(path):
    own = folder(path)
    for module in modules_of_the_house(path):
        other = folder(MODULES[module])
        assert other == own != "a program" or FLOOR[other] < FLOOR[own], f"{own} imports {module}"
    assert (own == "a program") == ('if __name__ == "__main__":' in path.read_text())


@pytest.mark.parametrize("path", [*FILES, *HOUSE], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_room(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", [*FILES, *HOUSE], ids=lambda p: str(p.relative_to(ROOT)))
def test_text_is_utf_8_whatever_the_locale(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = ast.unparse(node)
            opened = node.func.attr == "open" and re.search(r"""open\(['"][aw]\+?['"]""", given)
            if (opened or node.func.attr in ("read_text", "write_text")) and "/proc/" not in given:
                assert "utf-8" in given, given


def test_no_imports_go_round():
    list(TopologicalSorter({module: modules_of_the_house(path) for module, path in MODULES.items()}).static_order())


def test_the_library_imports_no_io():
    unwanted = (
        "tensorflow",
        "tensorflow_datasets",
        "orbax.checkpoint",
        "sklearn",
        "ml_collections",
        "matplotlib",
        "grain",
        "PIL",
    )
    code = f"import sys, jaxlocal; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "jaxlocal" / "rules").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_rule_is_one_short_file(path):
    assert len(path.read_text().splitlines()) <= 120
