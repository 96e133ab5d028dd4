"""Pictures of runs."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

from experiments.record import percent
from experiments.training import Results

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def learning_curves(results: Mapping[str, Results], path: Path) -> None:
    """Test accuracy at every exit over the steps: one panel per rule, dark lines for late exits."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, (name, result) in zip(axes[0], results.items(), strict=True):
        lines = [line for line in result.history if line["split"] == "test"]
        steps = [line["step"] for line in lines]
        exits = len(lines[-1]["accuracy"])
        for i in range(exits):
            shade = 0.35 + 0.6 * (i + 1) / exits
            label = f"exit {i + 1}" if i in (0, exits - 1) else None
            accuracy = [np.nan if line["accuracy"][i] is None else 100 * line["accuracy"][i] for line in lines]
            ax.plot(steps, accuracy, color=plt.get_cmap("viridis_r")(shade), marker=".", label=label)
        ax.set_title(f"{name}, last exit {percent(result.exits[-1], 1)}%")
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right", frameon=False)
    axes[0][0].set_ylabel("test accuracy (%)")
    figure.savefig(path, dpi=150)
    plt.close(figure)
