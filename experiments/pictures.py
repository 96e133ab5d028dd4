"""Pictures of runs."""

from collections.abc import Mapping
from pathlib import Path

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
