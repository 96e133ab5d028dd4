"""Notebooks run, in a short form, and their outputs, of the full form, are there for readers."""

import ast
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.training.notebook import printing_in_place
from tests.programs import ROOT

# What takes the place of the cell tagged `parameters`.
SHORT = {
    "1_what_a_block_is": "steps = 20",
    "2_auglocal_and_man": 'dataset, duration, follow = "digits", "20 steps", 5',
    "3_where_the_memory_goes": "depth, batch_size, blocks, batch_sizes = 8, 64, (1, 4), (32, 64)",
    "4_write_your_own_rule": 'duration, compared = "3 epochs", ("two_heads", "backprop")',
    "5_learning_without_backprop": ('layers, denoising, steps, denoisers = "2 epochs", "2 epochs", 3, ("noprop_dt",)'),
    "6_a_gpt_in_blocks": "steps = 20",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def parameters(notebook) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


def execute(notebook) -> list[nbformat.NotebookNode]:
    """Runs it where notebooks are, as a user does; returns the outputs of all cells. A cell that raises is an error."""
    resources = {"metadata": {"path": ROOT / "notebooks"}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@every_notebook
def test_outputs_are_saved_in_order(path):
    install, *cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert (install.execution_count, install.outputs) == (None, [])
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_first_cell_installs_where_nothing_is():
    """And does nothing here."""
    (cell, *_), *others = [[c for c in nbformat.read(path, 4).cells if c.cell_type == "code"] for path in NOTEBOOKS]
    assert all(cells[0].source == cell.source for cells in others)
    assert cell.source.endswith('if importlib.util.find_spec("jaxlocal") is None:\n    %pip install --quiet jaxlocal')
    assert execute(nbformat.v4.new_notebook(cells=[cell])) == []


@every_notebook
def test_outputs_name_no_directory(path):
    """Of the machine that they were made on."""
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
    texts = [output.get("text") or output.data.get("text/plain", "") for output in outputs]
    assert not re.search(r"/(tmp|home|root|var|usr)\b", "\n".join(texts))


@every_notebook
def test_the_short_form_sets_what_the_full_form_sets(path):
    def names(source: str) -> set[str]:
        return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}

    assert names(parameters(nbformat.read(path, 4)).source) == names(SHORT[path.stem])


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(path):
    notebook = nbformat.read(path, 4)
    parameters(notebook).source = SHORT[path.stem]
    execute(notebook)


def test_the_rule_of_the_fourth_may_be_a_file_of_the_library(tmp_path):
    """As it says, and the README."""
    shutil.copytree(ROOT / "jaxlocal", tmp_path / "jaxlocal", ignore=shutil.ignore_patterns("__pycache__"))
    (cell,) = [c for c in nbformat.read(NOTEBOOKS[3], 4).cells if c.source.startswith("import jax\n")]
    (tmp_path / "jaxlocal" / "rules" / "two_heads.py").write_text(cell.source)
    with (tmp_path / "jaxlocal" / "rules" / "__init__.py").open("a") as file:
        file.write("\nfrom jaxlocal.rules.two_heads import two_heads\n__all__ += ['two_heads']\n")
    shown = "from experiments.recipe import registry; print(registry.RULES['two_heads'].__module__)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", shown], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "jaxlocal.rules.two_heads", done.stderr


def test_a_run_prints_in_one_place():
    """In a notebook; what was printed before stays."""
    source = """
from experiments.training.notebook import printing_in_place
print("before", flush=True)
with printing_in_place():
    print("first")
    print("second", flush=True)
print("after", flush=True)
"""
    before, place, after = execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]))
    assert (before.text, place.data["text/plain"], after.text) == ("before\n", "second", "after\n")


def test_a_program_prints_every_line(capsys):
    with printing_in_place():
        print("first")
        print("second")
    assert capsys.readouterr().out == "first\nsecond\n"
