"""Pictures of runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from experiments.cost import MIB
from experiments.summary import Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import ScalarFormatter


def comparison(rows: Mapping[str, Row], path: Path) -> None:
    """Two panels: test error against the memory of a step; test error over the steps, a band over the seeds."""
    figure, (trade, curves) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colours = plt.get_cmap("tab20")
    for i, (name, row) in enumerate(rows.items()):
        memory, error = row.cost.temporaries / MIB, float(np.mean(row.errors))
        spread = float(np.std(row.errors, ddof=1)) if len(row.errors) > 1 else 0.0
        trade.errorbar(memory, error, spread, fmt="o", color=colours(i), capsize=3)
        trade.annotate(f" {name}", (memory, error), fontsize=8)
        mean = np.mean(row.curves, axis=0)
        curves.plot(row.steps, mean, color=colours(i), marker=".", label=name)
        curves.fill_between(row.steps, row.curves.min(axis=0), row.curves.max(axis=0), color=colours(i), alpha=0.15)
    trade.set_xlabel("temporaries of the compiled step (MiB)")
    trade.set_ylabel("test error at the last exit (%)")
    curves.set_xlabel("step")
    curves.set_ylabel("test error at the last exit (%), mean and range over seeds")
    curves.set_yscale("log")
    for axis in (curves.yaxis.set_major_formatter, curves.yaxis.set_minor_formatter):
        axis(ScalarFormatter())
    trade.margins(x=0.12)
    curves.legend(fontsize=8, frameon=False)
    for ax in (trade, curves):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


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
    figure, axes = plt.subplots(
        rows, columns, figsize=(9 * columns, height * rows), layout="constrained", squeeze=False
    )
    colours = plt.get_cmap("tab20")
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
    plt.close(figure)


def scaling(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Speed-up over the number of devices, a line for each way to use them."""
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
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
    plt.close(figure)
