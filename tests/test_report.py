"""The page about runs: it stands alone, says what the runs say, and opens in a browser."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from ml_collections import ConfigDict

from experiments.app.calls import parse_call
from experiments.app.errors import NOT_SAVED, UserError
from experiments.configs import common
from experiments.drawing import figures
from experiments.pages.report import page, read
from tests.browser import needs_browser, opened
from tests.programs import assert_one_line_error, program, train

VOID = {"meta", "link", "br"}


class Text(HTMLParser):
    """Cells and headings; every element that is opened is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.cells = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "h1", "h2"):
            self.cells.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Several exits in one block, several seeds in one run, and a name that HTML would take for a tag."""
    directory = tmp_path_factory.mktemp("runs")
    for name, rule, seeds in (("plain", "greedy", 1), ("<b>&seeds", "greedy", 2), ("deep", "deep_supervision(dgl)", 1)):
        config = common.finish(common.digits(), "smoke")
        config.model = ConfigDict({"name": "mlp", "features": (8, 8, 8)})
        config.rule, config.seeds = ConfigDict(parse_call(rule, "rule")), seeds
        train(config, directory / name)
    return [directory / name for name in ("plain", "<b>&seeds", "deep")]


def test_the_page_says_what_the_runs_say(runs):
    read_runs = read(runs)
    text = Text(page(read_runs)).cells
    for run in read_runs:
        assert run.name in text  # directories, as two rules are the same; as text, not as a tag
        assert f"{run.values[-1, -1]:.2f}" in text
        assert "4 of 4" in text
    assert text[text.index("seeds") :][:4] == ["seeds", "1", "2", "1"]  # what they differ in
    assert ", ".join(f"{error:.2f}" for error in read_runs[2].values[-1]) in text


def test_the_page_stands_alone(runs):
    """Nothing is fetched: every reference leads into the page; no id is there twice."""
    text = page(read(runs[:1]))
    assert all(target.startswith(("#", "data:")) for target in re.findall(r'(?:href|src)="([^"]*)"', text))
    assert not re.search(r"<script|@import|url\((?!#)", text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_pictures_of_an_analysis_are_in_the_page_but_nothing_that_acts(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    picture = tmp_path / "run" / "analysis" / "probes.svg"
    picture.parent.mkdir()
    picture.write_text(figures.svg(figures.bars([1.0, 2.0], "block", "what only this one says")))
    assert "what only this one says" in page(read([tmp_path / "run"]))
    svg = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{}</svg>'
    for bad in (
        svg.format("<script>alert(1)</script>"),
        svg.format('<g onload="alert(1)"/>'),
        svg.format('<image xlink:href="http://elsewhere/a.png"/>'),
        svg.format("<style>@import 'a.css';</style>"),
        svg.format("")[:-9],
        "",
    ):
        picture.write_text(bad)
        with pytest.raises(UserError, match=r"probes\.svg: "):
            page(read([tmp_path / "run"]))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_in_a_browser(runs, tmp_path, width):
    """Without errors or requests; nothing sticks out of a phone's window; pictures are as wide as they should be."""
    path = tmp_path / "report.html"
    path.write_text(page(read(runs)))
    with opened(path.as_uri(), width) as (view, said, asked):
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        pictures = view.evaluate("[...document.querySelectorAll('svg')].map(x => x.getBoundingClientRect())")
        assert len(pictures) == 7  # the comparison, and two of each run
        assert all(0.7 * min(width, 500) < box["width"] <= width for box in pictures)
        left = {round(box["x"]) for box in pictures}
        assert (len(left) > 1) == (width > 1000)  # side by side where there is room
    assert said == []
    assert asked == [path.as_uri()]


@pytest.mark.slow
def test_bad_input_ends_in_one_line(runs, tmp_path):
    assert_one_line_error(program("report"), "--workdir is needed")
    shutil.copytree(runs[0], tmp_path / "new")
    (tmp_path / "new" / "metrics.jsonl").unlink()
    assert_one_line_error(program("report", f"--workdir={tmp_path / 'new'}"), "nothing was evaluated yet")
    done = program("report", f"--workdir={runs[0]}", f"--output={tmp_path}")
    assert_one_line_error(done, "cannot be written", code=NOT_SAVED)
    (tmp_path / "new" / "config.json").write_text('{"config": {}}')
    assert_one_line_error(program("report", f"--workdir={tmp_path / 'new'}"), "the config has no field")


def test_the_program_writes_the_page(runs, tmp_path):
    done = program("report", *(f"--workdir={run}" for run in runs), f"--output={tmp_path / 'pages' / 'a.html'}")
    assert done.returncode == 0, done.stderr
    assert "3 runs" in (tmp_path / "pages" / "a.html").read_text()
