"""The largest batch whose step fits, by few steps compiled."""

import math
from collections.abc import Callable, Mapping


def largest(total: Callable[[int], float], budget: float, known: Mapping[int, float], near: float = 0.02) -> int:
    """The largest number whose total fits, to within ``near`` of it; 0 if none does.

    Totals lie on a line nearly, so the next number is where the line meets the budget; each third one is the middle of
    what is left, should there be no line.

    Args:
      total: that grows with its number, and costs much; infinite where it is too much to be told.
      budget: that it has to fit.
      known: totals of some numbers, of one at least.
      near: how near an end is near enough.
    """
    known = dict(known)
    while True:
        low = max((n for n, x in known.items() if x <= budget), default=0)
        high = min((n for n, x in known.items() if x > budget), default=math.inf)
        if high - low <= max(1, near * low):
            return low
        least = max(1, near * low / 2)  # that the next one is away from either end
        guess = min(max(_guess(known, budget, low, high), low + least), high - least)
        n = int(min(max(math.floor(guess), low + 1), high - 1))
        known[n] = total(n)


def _guess(known: Mapping[int, float], budget: float, low: int, high: float) -> float:
    """Where the line through the two totals that are nearest to the budget meets it."""
    finite = sorted((n for n in known if math.isfinite(known[n])), key=lambda n: abs(known[n] - budget))
    middle = (low + high) / 2 if math.isfinite(high) else 2 * low
    if not finite or len(known) % 3 == 0:
        return middle
    if len(finite) == 1:
        return finite[0] * budget / known[finite[0]]
    a, b = finite[:2]
    slope = (known[b] - known[a]) / (b - a)
    return a + (budget - known[a]) / slope if slope > 0 else middle
