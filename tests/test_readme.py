"""What the README says is what happens."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    namespace: dict = {}
    exec(code, namespace)
    assert namespace["state"].step == 1
    assert len(namespace["metrics"]) == len(namespace["exits"]) == 14


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_package_has_a_page_in_the_reference():
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "jaxlocal").rglob("__init__.py")}
    assert packages <= {page.stem for page in (ROOT / "docs" / "api").glob("*.rst")}
