"""Tables as text."""

from collections.abc import Sequence

import numpy as np


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    ruler = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([lines[0], ruler, *lines[1:]])


def spread(errors: Sequence[float]) -> str:
    """Mean and sample standard deviation; a dash if there are no numbers."""
    if np.any(np.isnan(errors)):
        return "-"
    mean = f"{np.mean(errors):.2f}"
    return f"{mean} ± {np.std(errors, ddof=1):.2f}" if len(errors) > 1 else mean
