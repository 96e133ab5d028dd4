"""What says how the project is built, installed, cited and released agrees with what there is."""

import re
import tomllib

import pytest
import yaml

import jaxlocal
from tests.programs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_there_is(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow.keys() >= {"name", True, "permissions", "jobs"}  # `on` is true in YAML
    for job in workflow["jobs"].values():
        assert set([job["needs"]] if "needs" in job else []) <= workflow["jobs"].keys()
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
            continue
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            words = step.get("run", "").split()
            if words[:1] == ["make"]:
                assert set(words[1:]) <= TARGETS
            if words[:1] == ["bash"]:
                assert (ROOT / words[1]).is_file()


def test_every_version_of_python_that_is_named_is_tested():
    (matrix,) = [
        job["strategy"]["matrix"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        if "strategy" in job
    ]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_other_files_of_the_host_can_be_read():
    for path in (ROOT / ".pre-commit-config.yaml", *(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")):
        assert yaml.safe_load(path.read_text()), path


def test_hooks_are_the_linters_that_are_tested():
    pinned = re.search(r"^ruff==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    assert set(re.findall(r"\[(ruff==.*)\]", (ROOT / ".pre-commit-config.yaml").read_text())) == {pinned}


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading, date = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    assert jaxlocal.__version__ == heading == citation["version"]
    assert str(citation["date-released"]) == date
    assert citation["license"] == PROJECT["license"]


def test_extras_that_messages_and_pages_name_are_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    sources = [path for package in ("jaxlocal", "experiments") for path in (ROOT / package).rglob("*.py")]
    named = {
        extra
        for path in (*pages, *sources)
        for names in re.findall(r"(?:jaxlocal|\.)\[([a-z,]+)\]'", path.read_text())
        for extra in names.split(",")
    }
    assert {"prepare", "tpu", "cuda", "text", "wandb", "hf", "torch"} <= named <= EXTRAS.keys()


def test_what_is_tested_with_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    for requirement in (*PROJECT["dependencies"], *EXTRAS["dev"]):
        assert re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-") in pinned
