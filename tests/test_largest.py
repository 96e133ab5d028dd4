"""The search for the largest batch, on totals that are known."""

import itertools
import math

import pytest

from experiments.cost.largest import largest


def searched(total, budget, start):
    """What was found, and the numbers that were asked for."""
    asked = []

    def counted(n):
        asked.append(n)
        return total(n)

    return largest(counted, budget, {start: total(start)}), asked


@pytest.mark.parametrize("start", [1, 64, 5000])
@pytest.mark.parametrize(
    "total",
    [
        lambda n: 100 + 3 * n,
        lambda n: 1000 + 3 * n + 40 * math.sqrt(n),
        lambda n: 500 + 256 * math.ceil(n / 64),  # in steps, as allocators round
        lambda n: 100 + 3 * n if n < 4000 else math.inf,  # a compiler that refuses what is too much
        lambda n: 100 + n**1.3,
        lambda n: 5000 + n if n < 700 else math.inf,  # one that refuses what it says would fit
    ],
)
def test_it_is_within_two_percent_and_asks_little(total, start):
    budget = 10000
    best = max(n for n in range(1, 20000) if total(n) <= budget)
    found, asked = searched(total, budget, start)
    assert total(found) <= budget
    assert best / 1.021 - 1 <= found <= best
    assert len(asked) == len(set(asked)) <= 14


def test_of_a_line_few_are_asked():
    found, asked = searched(lambda n: 100.0 + 3 * n, 10000, 64)
    assert len(asked) <= 4
    assert 3200 <= found <= 3300


def test_what_is_far_off_is_not_asked():
    """As a step of few examples, whose total says little of those of many."""
    total = lambda n: 5000 + 0.01 * n if n < 700_000 else math.inf  # noqa: E731
    found, asked = searched(total, 16e6, 4)
    assert 680_000 <= found < 700_000
    assert max(asked) <= 16 * 700_000
    assert len(asked) <= 14
    apart = sorted(asked)
    assert all(b - a >= 0.009 * a for a, b in itertools.pairwise(apart))


def test_where_nothing_fits_it_is_none():
    assert searched(lambda n: 100 + n, 100, 64)[0] == 0
    assert searched(lambda n: math.inf, 100, 64)[0] == 0
