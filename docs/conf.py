"""How the site is built: ``make docs``.

Its source directory is the repository's root, so that a link from one page to another is the same path here as on a
code host.
"""

import ast
import re
from pathlib import Path

from docutils.nodes import Element, SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import jaxlocal

ROOT = Path(__file__).parent.parent

project = "jaxlocal"
release = jaxlocal.__version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "notebooks/*.ipynb", "experiments/results/*.md"]
exclude_patterns = ["docs/_build", "docs/templates"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # pages have what was saved; the tests execute notebooks

autodoc_default_options = {"members": True, "ignore-module-all": True}  # what a module defines, not what it exports
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "furo"
html_math_renderer = "mathml"
html_favicon = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"jaxlocal {release}"
templates_path = ["templates"]
html_additional_pages = {"index": "redirect.html"}


def add_modules(app: Sphinx, name: str, source: list[str]) -> None:
    """Gives a page of ``docs/api`` a section for each module of the package that it is named after.

    Programs are run, not imported: of them there is the module's docstring, which has the commands.
    """
    del app
    if not name.startswith("docs/api/"):
        return
    package = Path(name).name
    for path in sorted((ROOT / package.replace(".", "/")).glob("*.py")):
        module, text = f"{package}.{path.stem}", path.read_text()
        if path.stem == "__init__":
            source[0] += f"\n{ast.get_docstring(ast.parse(text))}\n"
        elif package.startswith("jaxlocal"):
            source[0] += f"\n{module}\n{'-' * len(module)}\n\n.. automodule:: {module}\n"
        elif package != "experiments" or "__main__" in text:
            source[0] += f"\n{module}\n{'-' * len(module)}\n\n{ast.get_docstring(ast.parse(text))}\n"


def skip_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leaves out the fields of a NamedTuple as Python describes them: its docstring does."""
    del app, what, name, skip, options
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def mathml(formula: str, **options: str) -> str:
    """A formula as browsers draw it by themselves: no script, and nothing to fetch. A name stands apart: log p."""
    return re.sub(r"(<mi>[a-z]{2,}</mi>)(?=<m[^o])", r'\1<mspace width="0.17em" />', convert(formula, **options))


def inline_formula(page: HTML5Translator, node: Element) -> None:
    """A formula in a line of text; a long one may be scrolled."""
    kind = "math long" if len(node.astext()) > 40 else "math"
    page.body.append(f'<span class="{kind}">{mathml(node.astext())}</span>')
    raise SkipNode


def block_formula(page: HTML5Translator, node: Element) -> None:
    """A formula on a line of its own."""
    page.body.append(f'<div class="math">{mathml(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Is called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("source-read", add_modules)
