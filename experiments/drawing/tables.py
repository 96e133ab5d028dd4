"""Tables as text."""

from collections.abc import Mapping, Sequence

import numpy as np


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    ruler = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([lines[0], ruler, *lines[1:]])


def titled(rows: Sequence[Mapping[str, str]]) -> str:
    """Likewise, of rows that have the same columns: cells by the titles."""
    return aligned([tuple(rows[0]), *(tuple(row.values()) for row in rows)])


def spread(values: Sequence[float] | np.ndarray, form: str = ".2f") -> str:
    """Mean and sample standard deviation; a dash if there are no numbers."""
    if np.any(np.isnan(values)):
        return "-"
    mean = format(np.mean(values), form)
    return f"{mean} ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else mean
