"""What the README says is what happens."""

import re
import shlex
import subprocess

import pytest

from tests.programs import ROOT, program

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments" / "results").glob("*.md")),
]


@pytest.mark.slow
def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    namespace: dict = {}
    exec(code, namespace)
    assert namespace["state"].step == 1
    assert len(namespace["metrics"]) == len(namespace["exits"]) == 14


@pytest.mark.slow
@pytest.mark.parametrize(("demo", "ends"), [("demo-short", "Not shown: "), ("demo-text-short", "ROMEO:")])
def test_short_demos_run(demo, ends, tmp_path):
    """The programs that ``make`` would start, in the Python that runs the tests."""
    said = subprocess.run(["make", "--dry-run", demo], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^\.venv/bin/python -m experiments\.(.*)$", said.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == (1 if demo == "demo-short" else 3)
    for command in commands:
        done = program(*shlex.split(command.replace("runs/", f"{tmp_path}/")))
        assert done.returncode == 0, done.stderr
    assert ends in done.stdout


def test_links_lead_somewhere():
    for page in (*PAGES, *sorted((ROOT / "notebooks").glob("*.ipynb"))):
        for target in re.findall(r"\]\(([^)#: ]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_printed_commands_have_flags_that_there_are():
    shared = "".join(
        (ROOT / "experiments" / name).read_text() for name in ("trials/cases.py", "app/program.py", "app/processes.py")
    )
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for module, arguments in re.findall(r"python -m (experiments\.\w+)([^\n`]*)", text):
            source = (ROOT / f"{module.replace('.', '/')}.py").read_text() + shared
            for flag in re.findall(r"--(\w+)", re.sub(r"'[^']*'|\"[^\"]*\"", "", arguments)):
                known = any(f'"{name}"' in source for name in (flag, flag.removeprefix("no")))
                assert known or flag == "config", f"{page.name}: {module} has no flag --{flag}"


def test_figures_are_those_of_the_results():
    """After ``<!-- figures of: devices.md -->``, every number with a point is in that page of the results."""
    quoted = 0
    for page in PAGES:
        for files, text in re.findall(r"<!-- figures of: (.*?) -->\n(.*?)(?:\n\n|\Z)", page.read_text(), re.DOTALL):
            held = "".join((ROOT / "experiments" / "results" / file).read_text() for file in files.split(", "))
            for number in re.findall(r"\d[\d,]*\.\d+", text):
                assert number in held, f"{page.name}: {number} is not in {files}"
                quoted += 1
    assert quoted > 10


def test_every_package_has_a_page_in_the_reference():
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "jaxlocal").rglob("__init__.py")}
    assert packages <= {page.stem for page in (ROOT / "docs" / "api").glob("*.rst")}
