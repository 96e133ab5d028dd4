"""What the table says of several runs."""

import numpy as np
import pytest

from experiments.summary import exit_errors, spread


def test_exits_of_blocks_in_order():
    assert exit_errors([{"accuracy": 0.9, "loss": 1.0}, {"loss": 2.0}, {"accuracy": 0.75}]) == pytest.approx(
        [10.0, np.nan, 25.0], nan_ok=True
    )


def test_exits_of_one_block_are_counted_as_numbers():
    """Twelve exits, in the alphabetical order that they come in; terms inside an exit do not count."""
    terms = sorted(f"exit_{i}" for i in range(1, 13))
    block = dict.fromkeys(terms, 1.0) | {f"{term}/accuracy": int(term[5:]) / 100 for term in terms}
    block |= {f"{term}/label/accuracy": 0.0 for term in terms} | {"accuracy": 0.5}
    assert exit_errors([block]) == pytest.approx([*(100 - i for i in range(1, 13)), 50])


def test_spread_is_the_sample_deviation():
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert spread([1.0]) == "1.00"
