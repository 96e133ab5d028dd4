"""The largest batch whose step fits, by few steps compiled."""

import math
from collections.abc import Callable, Mapping

GROWTH = 16  # that the next number is at most of the largest that fits: compilers take long to refuse what is far off


def largest(total: Callable[[int], float], budget: float, known: Mapping[int, float], near: float = 0.02) -> int:
    """The largest number whose total fits, to within ``near`` of it; 0 if none does.

    Totals lie on a line nearly, so the next number is where the line meets the budget. It is no nearer to an end of
    what is left than an eighth of that; where no line is known, and each third time, it is the middle.

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
        guess = _guess(known, budget, low, high)
        if math.isinf(high):
            guess = min(max(guess, (1 + near) * low), GROWTH * low)
        else:
            margin = max((high - low) / 8, near * low / 2)
            guess = min(max(guess, low + margin), high - margin)
        n = int(min(max(math.floor(guess), low + 1), high - 1))
        known[n] = total(n)


def _guess(known: Mapping[int, float], budget: float, low: int, high: float) -> float:
    """Where the line through the two totals that are nearest to the budget meets it."""
    middle = math.sqrt(low * high) if high > 4 * low > 0 else (low + high) / 2
    finite = sorted((n for n, x in known.items() if math.isfinite(x)), key=lambda n: abs(known[n] - budget))
    if len(finite) == 1:
        meets = finite[0] * budget / known[finite[0]]
    elif finite:
        a, b = finite[:2]
        slope = (known[b] - known[a]) / (b - a)
        meets = a + (budget - known[a]) / slope if slope > 0 else middle
    sound = finite and low <= meets < high and (math.isinf(high) or len(known) % 3)
    return meets if sound else middle
