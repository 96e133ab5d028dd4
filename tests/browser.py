"""Pages as readers open them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Where changes are judged there has to be one: a test that is left out says nothing.
needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="no chromium or google-chrome is installed; PyPI has none"
)


@contextmanager
def opened(url: str, width: int) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A page in a window of a width: ``(page, what its console said, what it asked for)``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": width, "height": 844})
        said: list[str] = []
        asked: list[str] = []
        view.on("console", lambda message: said.append(f"{message.text} {message.location['url']}"))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: asked.append(request.url))
        view.goto(url)
        yield view, said, asked
        browser.close()
