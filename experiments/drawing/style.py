"""One house style: a colour for each rule, a marker for how it is run, ink that suits light pages and dark ones."""

import functools
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

Box = Sequence[float]  # left, lower, right, upper, in pixels

INK, FAINT, PAPER = "#24292f", "#a8b0b8", "#fefefe"  # in an SVG file the reader's own, if they like it dark
_DARK = {INK: "#e6edf3", FAINT: "#565e67", PAPER: "#0d1117"}
WIDTH = 6.5  # inches: at the width of a phone, text of ten points is still eight pixels high

# Of middle lightness, so that they stand out from white and from black, and apart in the eyes of the colour-blind:
# neighbours in a picture differ in lightness or in blue. Backprop is ink.
COLOURS = {
    "backprop": INK,
    "greedy": "#d98200",
    "dgl": "#1f6fd0",
    "auglocal": "#c8402a",
    "man": "#c05fa8",
    "infopro": "#12845a",
    "predsim": "#35a3c4",
    "deep_supervision": "#8a6a35",
    "shared": "#7a5fd0",
    "noprop_dt": "#4f63b8",
    "dfa": "#a58a1f",
    "drtp": "#a03f62",
    "tpsgd": "#2b8f86",
    "mono_forward": "#6d8f2c",
    "forward_forward": "#9459b0",
    "lopt": "#737c86",
}
_MORE = ("#b06f00", "#3f83b5", "#b34a6a", "#4f8f4a", "#8f6fb8", "#8f7a3a")
_RC: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "jaxlocal",  # equal pictures are equal files
}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """What is drawn in here is in the house style; the caller's own stays as it is."""

    @functools.wraps(draw)
    def in_style(*args: Any, **options: Any) -> Any:
        with matplotlib.rc_context(_RC):
            return draw(*args, **options)

    return in_style


def is_remat(rule: str) -> bool:
    """Whether a rule, written as a call, is rematerialised."""
    return rule.startswith("remat(")


def _name(rule: str) -> str:
    """What a rule is called; of one that is rematerialised, the rule inside."""
    return re.split(r"[(), @]", rule.removeprefix("remat("))[0]


def is_backprop(rule: str) -> bool:
    """Whether a rule is backprop, rematerialised or not: what all others are held against."""
    return _name(rule) == "backprop"


def colour(rule: str) -> str:
    """Of a rule, written as a call: the same in every picture; rematerialised, it keeps its own."""
    name = _name(rule)
    return COLOURS.get(name, _MORE[zlib.crc32(name.encode()) % len(_MORE)])


def marker(rule: str, executor: str = "fused") -> str:
    """A disc; a diamond where the rule is rematerialised; a square or a triangle where another executor runs it."""
    return {"fused": "D" if is_remat(rule) else "o", "streamed": "s"}.get(executor, "^")


def plain_ticks(axis: Axis) -> None:
    """Numbers as they are at 1, 2 and 5 of each power of ten, on a logarithmic axis; as many as there is room for."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def label_points(
    ax: Axes, labels: Sequence[tuple[str, float, float, str]], points: Sequence[tuple[float, float]]
) -> None:
    """Writes ``(text, x, y, colour)`` beside their points, where other labels and points leave room.

    Each goes, in order, to the first place around its point that is free and in the axes, or to the least bad.
    """
    figure: Any = ax.figure
    figure.draw_without_rendering()  # places are known after the layout
    size, pixel = 8.5, figure.dpi / 72
    frame = ax.get_window_extent().extents
    marks = [ax.transData.transform(point) for point in points]
    boxes: list[Box] = [(x - 5 * pixel, y - 5 * pixel, x + 5 * pixel, y + 5 * pixel) for x, y in marks]
    for text, x, y, of in labels:
        px, py = ax.transData.transform((x, y))
        width, height = 0.56 * size * len(text) * pixel, 1.25 * size * pixel

        def badness(place: tuple[int, Box], area: float = width * height) -> float:
            far, box = place
            return sum(_common(box, other) for other in boxes) + 4 * (area - _common(box, frame)) + 0.02 * far

        far, box = min(_places(px, py, width, height, pixel), key=badness)
        boxes.append(box)
        arrow = {"arrowstyle": "-", "color": of, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3} if far > 11 else None
        middle = ((box[0] + box[2]) / 2 - px) / pixel, ((box[1] + box[3]) / 2 - py) / pixel
        options: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "color": of, "arrowprops": arrow}
        ax.annotate(text, (x, y), middle, textcoords="offset points", **options).set_in_layout(False)


def _places(x: float, y: float, width: float, height: float, pixel: float) -> Iterator[tuple[int, Box]]:
    """Boxes around a point, nearest first, and how many points of type they are away from it."""
    for far in (6, 11, 18, 27):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)):
            left = x + far * pixel * dx - width * (1 - (dx > 0) if dx else 0.5)
            lower = y + far * pixel * dy - height * (1 - (dy > 0) if dy else 0.5)
            yield far, (left, lower, left + width, lower + height)


def _common(a: Box, b: Box) -> float:
    """The area of two boxes that is in both."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def write(figure: Figure, path: Path, numbers: Any = None) -> None:
    """Writes a picture: ``.svg`` in the reader's light or dark, anything else in light.

    Args:
      figure: drawn in the house style.
      path: of the file.
      numbers: that it was drawn from; an SVG file has their :func:`fingerprint`.
    """
    if path.suffix == ".svg":
        path.write_text(adaptive(svg(figure, "" if numbers is None else fingerprint(numbers))), encoding="utf-8")
    else:
        figure.savefig(path, dpi=150)


def fingerprint(numbers: Any) -> str:
    """What tells numbers from others that a picture could have been drawn from."""
    return f"{zlib.crc32(repr(numbers).encode()):08x}"


def svg(figure: Figure, identifier: str = "") -> str:
    """A picture as the text of an SVG file."""
    text = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(
            text, format="svg", metadata={"Date": None, **({"Identifier": identifier} if identifier else {})}
        )
    return text.getvalue()


def adaptive(text: str) -> str:
    """The text of an SVG file, whose ink is light on dark paper where the reader's other pages are."""
    names = {INK: "ink", FAINT: "faint", PAPER: "paper"}
    for of, name in names.items():
        text = re.sub(rf"(\w[\w-]*): {of}", rf"\1: {of}; \1: var(--{name})", text)
    light = " ".join(f"--{name}: {of};" for of, name in names.items())
    dark = " ".join(f"--{name}: {_DARK[of]};" for of, name in names.items())
    rules = f"<style>svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    return re.sub(r"(<svg[^>]*>)", rf"\1\n {rules}", text, count=1)
