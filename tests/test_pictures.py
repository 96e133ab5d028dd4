"""Pictures: what is committed was drawn from what is committed; one style; labels beside their points."""

import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from experiments.drawing import style, trades
from experiments.pages.committed import tables
from experiments.recipe.registry import RULES
from tests.programs import ROOT, program

RESULTS = ROOT / "experiments" / "results"


def identifier(path: Path) -> str:
    (found,) = re.findall(r"<dc:identifier>(\w+)</dc:identifier>", path.read_text(encoding="utf-8"))
    return found


def test_committed_pictures_are_of_the_committed_numbers(tmp_path):
    """Where this fails, a page was changed: `make pictures` draws them again."""
    done = program("pictures", f"--output={tmp_path / 'new'}")
    assert done.returncode == 0, done.stderr
    drawn = sorted((tmp_path / "new").iterdir())
    assert {path.name for path in drawn} == {path.name for path in RESULTS.glob("*.svg")}
    for path in drawn:
        assert identifier(path) == identifier(RESULTS / path.name), path.name


def test_every_committed_picture_is_in_a_page():
    pages = "".join(page.read_text() for page in RESULTS.glob("*.md"))
    assert all(f"({path.name})" in pages for path in (*RESULTS.glob("*.svg"), *RESULTS.glob("*.png")))


def test_tables_of_a_page():
    page = "# a\n\n| x | y | y |\n| - | - | - |\n| 1 | 2 | *3* |\n\n| z |\n| - |\n| 4 |\n\n## b\n\ntext\n"
    assert tables(page) == {"a": [{"x": "1", "y": "*3*"}]}


def test_rules_have_colours_of_their_own():
    named = [name for name in style.COLOURS if name not in ("backprop", "remat")]
    assert len({style.COLOURS[name] for name in named}) == len(named)
    assert set(style.COLOURS) <= set(RULES)
    assert style.colour("remat(auglocal(depth=2)), all") == style.colour("auglocal(depth=5)") != style.colour("dgl")
    assert style.colour("remat(backprop)") == style.colour("backprop") == style.INK
    assert style.colour("mine(depth=2)") == style.colour("mine") in style._MORE
    assert [style.marker(rule) for rule in ("dgl", "remat(dgl)")] == ["o", "D"]
    assert [style.marker("dgl", how) for how in ("streamed", "streamed+offload")] == ["s", "^"]


def test_a_picture_suits_light_and_dark(tmp_path):
    points = [trades.Trade("backprop", 1, 1, 1, 2.0, 0.1), trades.Trade("dgl", 4, 0.4, 1.1, 2.5, 0.0)]
    trades.trades(points, "error", "a task", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"var\(--(\w+)\)", text)) == {"ink", "faint", "paper"}
    assert text.count(style.INK) - 1 == text.count("var(--ink)")
    trades.trades(points, "error", "a task", tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()
    trades.trades(points[:1], "error", "a task", tmp_path / "b.svg")
    assert identifier(tmp_path / "b.svg") != identifier(tmp_path / "a.svg")


def test_the_style_stays_in_the_picture(tmp_path):
    before = dict(matplotlib.rcParams)
    trades.scaling({"dgl": [(1, 1.0), (2, 1.8)]}, tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("n", [2, 5])
def test_labels_do_not_cover_each_other(n):
    ax = (figure := Figure(figsize=(6, 4))).subplots()
    points = [(1 + 0.01 * i, 1 - 0.01 * i) for i in range(n)]  # nearly one place
    ax.plot(*zip((0, 0), (2, 2), *points, strict=True), "o")
    style.label_points(ax, [(f"rule {i}", x, y, "black") for i, (x, y) in enumerate(points)], points)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == n
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(ax.get_window_extent().fully_containsx(box.x0) for box in boxes)
