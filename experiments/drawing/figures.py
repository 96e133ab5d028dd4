"""Pictures: figures by themselves, which no display and no backend need to know of."""

import io
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, ScalarFormatter

Numbers = Sequence[float] | np.ndarray
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
matplotlib.rcParams["svg.hashsalt"] = "jaxlocal"  # equal pictures are equal files


class Point(NamedTuple):
    """A case of a benchmark.

    Attributes:
      label: for the legend.
      x: its memory.
      y: what memory is traded for.
      best: whether it is on the frontier.
    """

    label: str
    x: float
    y: float
    best: bool


def frontier(panels: Mapping[str, Sequence[Point]], xlabel: str, ylabel: str, path: Path) -> None:
    """A panel for each group of cases: numbered markers, and a line through those on the frontier, which are filled."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = max(5.0, 0.16 * max(map(len, panels.values())))  # the legend has a line for each point
    figure = Figure(figsize=(9 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    colours = matplotlib.colormaps["tab20"]
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, points) in zip(axes.flat, panels.items(), strict=False):
        best = sorted((point.x, point.y) for point in points if point.best)
        ax.plot(*zip(*best, strict=True), color="0.6", zorder=0)
        for i, point in enumerate(points):
            colour = colours(i % 20)
            fill = colour if point.best else "white"
            style = {"marker": "os^Dv"[i // 20 % 5], "markerfacecolor": fill, "linestyle": "none"}
            ax.plot(point.x, point.y, color=colour, label=f"{i + 1}  {point.label}", **style)
            ax.annotate(f"{i + 1}", (point.x, point.y), (4, 4), textcoords="offset points", fontsize=8)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale="log")
        ax.title.set_fontsize(10)
        for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
            axis(ScalarFormatter())
        ax.tick_params(axis="x", which="minor", labelsize=7)
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def by_device(panels: Mapping[str, Mapping[str, Mapping[str, float]]], xlabel: str, path: Path) -> None:
    """A panel for each group, a row for each case in it, and a mark for each device; 1 is what all are relative to."""
    devices = list(dict.fromkeys(name for rows in panels.values() for marks in rows.values() for name in marks))
    heights = [0.9 + 0.23 * len(rows) for rows in panels.values()]
    figure = Figure(figsize=(8.5, sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        for i, device in enumerate(devices):
            at = [(marks[device], y) for y, marks in enumerate(rows.values()) if device in marks]
            style = {"marker": "o^sDvP"[i % 6], "color": f"C{i % 10}", "linestyle": "none", "markersize": 6}
            ax.plot(*zip(*at, strict=True), label=device, **style) if at else None
        ax.axvline(1, color="0.4", linewidth=0.8, zorder=0)
        ax.set(xscale="log", yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
        ax.set_yticklabels(rows, fontsize=8)
        ax.set_title(title, fontsize=10, loc="left")
        ax.grid(alpha=0.3)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[-1].set_xlabel(xlabel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


class Trade(NamedTuple):
    """A row of a benchmark.

    Attributes:
      kind: what has one colour.
      name: its label.
      memory: relative to the first row's.
      flops: likewise.
      error: the mean over its seeds.
      deviation: of these.
    """

    kind: str
    name: str
    memory: float
    flops: float
    error: float
    deviation: float


def trades(points: Sequence[Trade], ylabel: str, title: str, path: Path) -> None:
    """Error against memory and against FLOPs; the first point is what both are relative to."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    kinds = list(dict.fromkeys(point.kind for point in points))
    for ax, xlabel, of in ((axes[0], "memory", "memory"), (axes[1], "FLOPs", "flops")):
        middle = (min(getattr(point, of) for point in points) + max(getattr(point, of) for point in points)) / 2
        for point in points:
            colour = matplotlib.colormaps["tab10"](kinds.index(point.kind) % 10)
            at = getattr(point, of), point.error
            ax.errorbar(*at, point.deviation, fmt="o", color=colour, capsize=3)
            side = {"xytext": (5, 3)} if at[0] <= middle else {"xytext": (-5, 3), "ha": "right"}
            ax.annotate(point.name, at, textcoords="offset points", fontsize=8, color=colour, **side)
        ax.axhline(points[0].error, color="0.4", linewidth=0.8, zorder=0)
        ax.axvline(1, color="0.4", linewidth=0.8, zorder=0)
        ax.set_xlabel(f"{xlabel} of a step ÷ {points[0].name}'s")
        ax.margins(x=0.1)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(ylabel)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)


def scaling(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Speed-up over the number of devices, a line for each way to use them."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    for name, points in curves.items():
        ax.plot(*zip(*points, strict=True), marker=".", label=name)
    most = max((n for points in curves.values() for n, _ in points), default=1)
    ax.plot([1, most], [1, most], color="0.7", zorder=0, label="perfect")
    ax.set(xlabel="devices", ylabel="throughput ÷ one device's", xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


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
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(alpha=0.3)
    if len(curves) > 1:
        columns = 1 if max(map(len, curves)) > 20 else min(4, len(curves))
        figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=columns)
    return figure


def exits(steps: Numbers, values: np.ndarray, ylabel: str, *, log: bool) -> Figure:
    """A number at every exit over the steps of training; ``values`` is ``[steps, exits]``."""
    curves = {f"exit {i + 1}": (steps, column) for i, column in enumerate(values.T)}
    return lines(curves, "step", ylabel, log=log)


def bars(values: Numbers, xlabel: str, ylabel: str) -> Figure:
    """A bar for each block; none where there is no value."""
    names = [str(i) for i in range(len(values))]
    figure = Figure(figsize=(max(4.5, 0.4 * len(names)), 3.6), layout="constrained")
    ax = figure.subplots()
    drawn = ax.bar(names, values, color="#6f9bd1")
    ax.bar_label(drawn, [f"{x:.2g}" if math.isfinite(x) else "none" for x in values], fontsize=7, padding=2)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.margins(y=0.12)
    ax.grid(alpha=0.3, axis="y")
    return figure


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
    figure.savefig(path.with_suffix(".png"), dpi=130)
    path.with_suffix(".svg").write_text(svg(figure), encoding="utf-8")


def svg(figure: Figure) -> str:
    """A picture as the text of an SVG file."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


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
