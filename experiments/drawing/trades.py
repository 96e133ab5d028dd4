"""Pictures of what is traded for what: memory, time, FLOPs, error, all relative to backprop's."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from experiments.drawing.style import (
    FAINT,
    INK,
    WIDTH,
    colour,
    is_backprop,
    is_remat,
    label_points,
    marker,
    plain_ticks,
    styled,
    write,
)


class Point(NamedTuple):
    """A case of a benchmark.

    Attributes:
      rule: as a call.
      blocks: their number.
      executor: that runs it.
      accumulate: batches that an update is made of.
      x: its memory ÷ backprop's.
      y: what memory is traded for, likewise.
      best: whether it is on the frontier.
    """

    rule: str
    blocks: int
    executor: str
    accumulate: int
    x: float
    y: float
    best: bool

    @property
    def name(self) -> str:
        """Rule, number of blocks, and how the batch is split."""
        blocks = f" K={self.blocks}" if self.blocks > 1 else ""
        return f"{self.rule}{blocks}" + (f", {self.accumulate} small batches" if self.accumulate > 1 else "")


@styled
def frontier(panels: Mapping[str, Sequence[Point]], xlabel: str, ylabel: str, path: Path) -> None:
    """A panel for each group of cases; a line goes through one rule's numbers of blocks.

    What is on the frontier is filled and named, and so are backprop and rematerialised backprop, whose memory and time
    are lines. Any other rule is named once.
    """
    figure = Figure(figsize=(WIDTH, 4.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale="log")
        plain_ticks(ax.xaxis)
        ax.axhline(1, color=INK, linewidth=0.9, zorder=1)
        whole = [point for point in points if point.accumulate == 1]
        lines = _lines(whole)
        for point in whole:
            if is_backprop(point.rule):
                ax.axvline(point.x, color=INK, linewidth=0.9, linestyle=":" if is_remat(point.rule) else "-", zorder=1)
        for (rule, _), members in lines:
            if len(members) > 1:
                ax.plot([p.x for p in members], [p.y for p in members], color=colour(rule), linewidth=1, alpha=0.6)
        for point in points:
            of = colour(point.rule)
            fill = of if point.best else ax.get_facecolor()
            style: dict[str, Any] = {"markersize": 6, "markeredgewidth": 1.4, "markerfacecolor": fill}
            ax.plot(point.x, point.y, marker(point.rule, point.executor), color=of, **style)
        ax.margins(x=0.12, y=0.1)
        named = [p for p in points if p.best or is_backprop(p.rule)]
        for (rule, _), members in lines:
            if rule not in {p.rule for p in named}:
                named.append(max(members, key=lambda p: p.y))
        label_points(ax, [(p.name, p.x, p.y, colour(p.rule)) for p in named], [(p.x, p.y) for p in points])
    figure.supxlabel("filled: nothing else is lower in both; diamonds: rematerialised", fontsize=8.5, color=INK)
    write(figure, path, panels)


def _lines(points: Sequence[Point]) -> list[tuple[tuple[str, str], list[Point]]]:
    """The points of each rule and executor, by their number of blocks."""
    ordered = sorted(points, key=lambda p: (p.rule, p.executor, p.blocks))
    return [(key, list(members)) for key, members in groupby(ordered, lambda p: (p.rule, p.executor))]


@styled
def by_device(panels: Mapping[str, Mapping[str, Mapping[str, float]]], xlabel: str, path: Path) -> None:
    """A panel for each group, a row for each case in it, and a mark for each device; 1 is what all are relative to.

    Cases are named by their rules as calls, and what follows a comma or a blank.
    """
    devices = list(dict.fromkeys(name for rows in panels.values() for marks in rows.values() for name in marks))
    heights = [0.9 + 0.27 * len(rows) for rows in panels.values()]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        for y, (name, marks) in enumerate(rows.items()):
            of = colour(name)
            ax.plot([min(marks.values()), max(marks.values())], [y, y], color=of, linewidth=1, alpha=0.5)
            for i, device in enumerate(devices):
                if device in marks:
                    fill = of if i else ax.get_facecolor()
                    ax.plot(marks[device], y, "osD^vP"[i % 6], color=of, markersize=7, markerfacecolor=fill)
            if is_backprop(name):  # which is here rematerialised alone
                for x in marks.values():
                    ax.axvline(x, color=INK, linewidth=0.9, linestyle=":", zorder=1)
        ax.axvline(1, color=INK, linewidth=0.9, zorder=1)
        ax.set(xscale="log", yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6), title=title)
        ax.set_yticklabels(rows, fontsize=9)
        ax.tick_params(axis="y", length=0)
        plain_ticks(ax.xaxis)
    axes[-1].set_xlabel(xlabel)
    for i, device in enumerate(devices):
        fill = INK if i else "none"
        axes[0].plot([], [], "osD^vP"[i % 6], color=INK, markerfacecolor=fill, label=device)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=6)
    write(figure, path, panels)


class Trade(NamedTuple):
    """A row of a benchmark.

    Attributes:
      rule: as a call.
      blocks: their number.
      memory: relative to the first row's.
      flops: likewise.
      error: the mean over its seeds.
      deviation: of these.
    """

    rule: str
    blocks: int
    memory: float
    flops: float
    error: float
    deviation: float


@styled
def trades(points: Sequence[Trade], ylabel: str, title: str, path: Path) -> None:
    """Error against memory and against FLOPs; the first point is what both are relative to.

    A line goes through one rule's numbers of blocks, which stand at its points; its name, at one of them.
    """
    figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    axes = figure.subplots(2, 1, sharey=True)
    ordered = sorted(points, key=lambda p: p.rule)
    rules = [list(members) for _, members in groupby(ordered, lambda p: p.rule)]
    for ax, xlabel, of in ((axes[0], "memory", "memory"), (axes[1], "FLOPs", "flops")):
        ax.axhline(points[0].error, color=INK, linewidth=0.9, zorder=1)
        ax.axvline(1, color=INK, linewidth=0.9, zorder=1)
        labels = []
        for members in rules:
            members = sorted(members, key=lambda p: p.blocks)
            x, y = [getattr(p, of) for p in members], [p.error for p in members]
            hue = colour(members[0].rule)
            ax.plot(x, y, color=hue, linewidth=1, alpha=0.6)
            style: dict[str, Any] = {
                "fmt": marker(members[0].rule),
                "color": hue,
                "markersize": 5,
                "elinewidth": 0.8,
                "capsize": 2,
            }
            ax.errorbar(x, y, [p.deviation for p in members], **style)
            labels += [(_named(p, i == 0), x[i], p.error, hue) for i, p in enumerate(members)]
        ax.set(xlabel=f"{xlabel} of a step ÷ {points[0].rule}'s", ylabel=ylabel)
        ax.margins(x=0.14)
        label_points(ax, labels, [(getattr(p, of), p.error) for p in points])
    figure.suptitle(f"{title}\nnumbers: blocks; bars: deviation over seeds", fontsize=10, color=INK)
    write(figure, path, points)


def _named(point: Trade, first: bool) -> str:
    number = f"{point.blocks}" if point.blocks > 1 else ""
    return " ".join(filter(None, (point.rule if first else "", number)))


@styled
def scaling(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Speed-up over the number of devices, a line for each way to use them."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    ax = figure.subplots()
    most = max((n for points in curves.values() for n, _ in points), default=1)
    ax.plot([1, most], [1, most], color=FAINT, zorder=0, label="perfect")
    for i, (name, points) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "marker": "osD^vP"[i % 6],
            "markersize": 4,
            "linestyle": ("-", "--", ":", "-.")[i // 2 % 4],
        }
        ax.plot(*zip(*points, strict=True), color=colour(name), label=name, **style)
    ax.set(xlabel="devices", ylabel="throughput ÷ one device's", xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    ax.legend()
    write(figure, path, curves)
