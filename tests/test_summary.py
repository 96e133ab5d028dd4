"""What the table says of several runs."""

import signal
from pathlib import Path

import numpy as np
import pytest

from experiments.drawing.tables import spread
from experiments.training.metrics import exit_errors
from experiments.training.results import Results, side_by_side


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
    assert spread([np.nan, np.nan]) == "-"  # of an exit that predicts no classes


def line(step: int, *accuracies: float | None, split: str = "test", **which: int) -> dict:
    return {"step": step, "split": split, **which, "loss": [1.0] * len(accuracies), "accuracy": list(accuracies)}


def results(*seeds: list[dict], stopped_by=None) -> Results:
    history = [line(1, 0.1, None, 0.2, split="train"), line(1, 0.5, None, 0.75), line(2, 0.75, None, 0.875)]
    parameters = [{"network": n, "head": 10 * n} for n in (100, 20, 3)]
    about = {"units": 4, "cuts": [1, 3], "parameters": parameters}
    return Results(Path("somewhere"), history, about, seeds, stopped_by)


ONE, OTHER = ([{"accuracy": a}, {"loss": 1.0}, {"accuracy": b}] for a, b in ((0.75, 0.875), (0.5, 0.875)))


def test_a_run_is_shown_as_the_table_of_its_exits():
    shown = results(ONE, OTHER)._repr_markdown_()
    header, _, *exits, _, size = shown.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["exit", "test error %"]
    assert [[cell.strip() for cell in exit.strip("|").split("|")] for exit in exits] == [
        ["1", "37.50 ± 17.68"],
        ["2", "-"],
        ["3", "12.50 ± 0.00"],
    ]
    assert size == "4 units in 3 blocks (cuts [1, 3]), 123 parameters, 1,230 in heads"
    assert repr(results(ONE, OTHER)) == shown  # not the lines of the history


def test_a_run_that_was_stopped_says_so():
    assert repr(results(stopped_by=signal.SIGINT)).endswith("; stopped by SIGINT")


def test_the_plot_has_the_test_errors_of_every_exit():
    (ax,) = results(ONE).plot().axes
    drawn = {curve.get_label(): curve.get_xydata().tolist() for curve in ax.get_lines()}
    np.testing.assert_equal(
        drawn, {"exit 1": [[1, 50], [2, 25]], "exit 2": [[1, np.nan], [2, np.nan]], "exit 3": [[1, 25], [2, 12.5]]}
    )
    assert ax.get_yscale() == "log"


def test_an_error_of_zero_is_drawn():
    """A logarithmic axis has no place for it."""
    run = results(ONE)
    (ax,) = run._replace(history=[*run.history, line(3, 0.75, None, 1.0)]).plot().axes
    assert ax.get_yscale() == "linear"


def test_runs_stand_side_by_side():
    *_, row = side_by_side({"mine": results(ONE, OTHER)}).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "mine",
        "3",
        "1,230",
        "37.50",
        "12.50 (exit 3)",
        "12.50",
    ]
