"""Pictures: figures by themselves, which no display and no backend need to know of."""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.drawing.style import COLOURS, INK, plain_ticks, styled, svg, write

Numbers = Sequence[float] | np.ndarray


@styled
def lines(
    curves: Mapping[str, tuple[Numbers, Numbers]],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
    marker: str = ".",
) -> Figure:
    """A line for each of some named curves, ``(x, y)``; in order of depth where there are many.

    Args:
      curves: by name, which the legend has if there are several.
      xlabel: of the horizontal axis.
      ylabel: of the vertical axis.
      log: whether the vertical axis is logarithmic; it is not where a value is zero or below.
      marker: of every point.
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    ax = figure.subplots()
    colours = matplotlib.colormaps["viridis" if len(curves) > 3 else "tab10"]
    log = log and not any(np.any(np.asarray(y, float) <= 0) for _, y in curves.values())
    for i, (name, (x, y)) in enumerate(curves.items()):
        colour = colours(0.92 * i / (len(curves) - 1)) if len(curves) > 3 else colours(i)
        ax.plot(x, y, marker=marker, markersize=4, linewidth=1.3, color=colour, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    if log:
        plain_ticks(ax.yaxis)
    if len(curves) > 1:
        columns = 1 if max(map(len, curves)) > 20 else min(4, len(curves))
        figure.legend(fontsize=7, loc="outside lower center", ncols=columns)
    return figure


def exits(steps: Numbers, values: np.ndarray, ylabel: str, *, log: bool) -> Figure:
    """A number at every exit over the steps of training; ``values`` is ``[steps, exits]``."""
    curves = {f"exit {i + 1}": (steps, column) for i, column in enumerate(values.T)}
    return lines(curves, "step", ylabel, log=log)


@styled
def bars(values: Numbers, xlabel: str, ylabel: str) -> Figure:
    """A bar for each block; none where there is no value."""
    names = [str(i) for i in range(len(values))]
    figure = Figure(figsize=(max(4.5, 0.4 * len(names)), 3.6), layout="constrained")
    ax = figure.subplots()
    drawn = ax.bar(names, values, color=COLOURS["dgl"])
    ax.bar_label(drawn, [f"{x:.2g}" if math.isfinite(x) else "none" for x in values], fontsize=7, padding=2)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.margins(y=0.12)
    ax.grid(visible=False, axis="x")
    return figure


@styled
def matrix(
    values: np.ndarray,
    xlabel: str,
    ylabel: str,
    bar: str,
    *,
    form: str = ".2f",
    most: float = 1.0,
    names: Sequence[str] = (),
) -> Figure:
    """A square for each pair, with its number and their ``names`` where there is room; 0 is light, ``most`` dark."""
    rows, columns = values.shape
    figure = Figure(figsize=(2.2 + 0.36 * columns, 1.6 + 0.36 * rows), layout="constrained")
    ax = figure.subplots()
    ax.grid(visible=False)
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=most)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    for setter, n in ((ax.set_xticks, columns), (ax.set_yticks, rows)):
        setter(range(0, n, 1 if n <= 20 else n // 10))
    if names and len(names) <= 20:
        ax.set_xticklabels([name[:20] for name in names], rotation=90)
        ax.set_yticklabels([name[:20] for name in names])
    if max(rows, columns) <= 20:
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value) and value:
                colour = "white" if value > 0.6 * most else "0.2"
                ax.text(column, row, format(value, form), ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, label=bar, shrink=0.85)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a picture as ``.png`` and as ``.svg``."""
    write(figure, path.with_suffix(".png"))
    path.with_suffix(".svg").write_text(svg(figure), encoding="utf-8")


def inline(figure: Figure) -> str:
    """A picture as an SVG element, for a page."""
    return embedded(svg(figure))


def embedded(text: str) -> str:
    """The element of an SVG file, whose names are its own in a page of several.

    Raises:
      ValueError: if it is none, or could act on the page: it has scripts, handlers, foreign elements or links.
    """
    try:
        elements = list(ElementTree.fromstring(text).iter())
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no SVG: {error}") from error
    if not elements[0].tag.endswith("}svg"):
        raise ValueError("it is no SVG")
    for element in elements:
        kind = element.tag.rpartition("}")[2]
        given = [(name.rpartition("}")[2], x) for name, x in element.attrib.items()]
        acts = kind in ("script", "foreignObject", "iframe", "a") or any(name.startswith("on") for name, _ in given)
        loads = any(name.endswith("href") and not x.startswith(("#", "data:image/png")) for name, x in given)
        if acts or loads or (kind == "style" and re.search(r"@import|url\(", element.text or "")):
            raise ValueError(f"its element {kind} could act on the page")
    own = rf"\1p{zlib.crc32(text.encode()):08x}-"
    return re.sub(r'(\bid="|href="#|url\(#)', own, text[text.index("<svg") :])
