"""The site, as `make docs` left it: nothing comes from elsewhere, nothing sticks out of a phone, search finds."""

import os
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.browser import needs_browser, opened
from tests.programs import ROOT

SITE = ROOT / "docs" / "_build" / "html"
GALLERY = ROOT / "docs" / "gallery.md"
# One of each kind: tables, formulas, pictures, a notebook, results, the reference.
PAGES = [
    "README",
    "CHANGELOG",
    "docs/index",
    "docs/gallery",
    "docs/memory",
    "docs/rules/noprop",
    "docs/rules/tpsgd",
    "docs/api/jaxlocal.rules",
    "docs/api/experiments",
    "experiments/results/frontier_cpu",
    "notebooks/5_learning_without_backprop",
]
needs_site = pytest.mark.skipif(
    not SITE.exists() and not os.environ.get("CI"), reason="the site was not built: make docs"
)


def test_every_picture_is_in_the_gallery_with_its_command():
    pictures = {*(ROOT / "docs").glob("*.svg"), *(ROOT / "experiments" / "results").glob("*.svg")}
    parts = GALLERY.read_text().split("\n## ")[1:]
    shown = [(GALLERY.parent / target).resolve() for target in re.findall(r"!\[.+\]\((.+)\)", GALLERY.read_text())]
    assert sorted(shown) == sorted(pictures)
    for part in parts:
        assert "](" in part, part
        assert re.search(r"```\npython -m experiments\.\w+ ", part), part


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=SITE)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@needs_site
@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_window_and_ask_nobody_else(site, width):
    with opened(f"{site}/index.html", width) as (view, said, asked):
        view.wait_for_url("**/docs/index.html")  # where it leads
        for name in PAGES:
            view.goto(f"{site}/{name}.html")
            assert view.evaluate("document.documentElement.scrollWidth") <= width, name
            outside = """[...document.querySelectorAll('math')].filter(x => x.getBoundingClientRect().right > innerWidth
                && !x.closest('.math.long, div.math, .table-wrapper')).map(x => x.textContent)"""
            assert view.evaluate(outside) == [], name
            broken = view.evaluate("[...document.images].filter(x => x.complete && !x.naturalWidth).map(x => x.src)")
            assert broken == [], name
        view.goto(f"{site}/docs/rules/noprop.html")
        heights = view.evaluate("[...document.querySelectorAll('math')].map(x => x.getBoundingClientRect().height)")
    assert len(heights) > 10
    assert min(heights) > 5  # drawn
    assert said == []
    assert [url for url in asked if not url.startswith((site, "data:"))] == []


@pytest.mark.slow
@needs_site
@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_search_finds_what_there_is(site, width):
    with opened(f"{site}/search.html?q=noprop", width) as (view, said, asked):
        view.wait_for_selector("#search-results li a")
        found = view.evaluate("[...document.querySelectorAll('#search-results li a')].map(x => x.pathname)")
        assert "/docs/rules/noprop.html" in found
        assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    assert all(url.startswith(site) for url in asked)
