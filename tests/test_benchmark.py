"""Suites: what they may be, what is known of their runs, and a whole one on digits."""

import json
import math
import re

import pytest

from experiments.app.environment import environment
from experiments.app.errors import UserError
from experiments.pages.benchmark import page
from experiments.recipe.registry import make_rule
from experiments.recipe.suite import Row, Suite, Task, chosen, command, read, recipe, rows_of
from experiments.trials.runs import add_line, built, lines_of, to_go
from tests.programs import assert_one_line_error, program

TINY = """
title = "Tiny"
[[task]]
name = "digits"
title = "Digits"
config = "auglocal_digits"
seeds = 2
set = { "duration" = "1 epochs", "schedule" = "constant", "model" = "mlp(features=(16, 16))" }
rows = [
  { rule = "backprop", published = "1.0" },
  { rule = "greedy", note = "linear heads" },
]
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_row_of_the_suites_is_a_recipe(name):
    suite = read(name)
    for task in suite.tasks:
        for row in task.rows:
            config = recipe(task, row, 1)
            make_rule(config.rule)
            assert config.seed == 1
            assert (
                f"--config.rule={row.rule}" in command(task, row).replace("'", "").replace('"', "") or "'" in row.rule
            )


def test_one_seed_of_everything_comes_first(tiny):
    runs = [(row.rule, n) for _, row, n in read(str(tiny)).runs()]
    assert runs == [("backprop", 0), ("greedy", 0), ("backprop", 1), ("greedy", 1)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "Digits"', "", "task needs 'title'"),
        ("seeds = 2", "seeds = 0", "rows and seeds are needed"),
        ("seeds = 2", "seeds = true", "seeds = True: expected int"),
        ("seeds = 2", "sedes = 2", "no field 'sedes'"),
        ('rule = "greedy"', 'rule = "backprop"', "two rows are the same"),
        ("rows = [", "rows = [3,", "a row is a table, not 3"),
        ("[[task]]", "[[task", "Expected"),
    ],
)
def test_what_is_no_suite(tiny, old, new, words):
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises(UserError, match=words):
        read(str(tiny))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"auglocal_digits"', '"auglocal_digit"', "config auglocal_digit: No such file"),
        ('"duration"', '"duratoin"', "unknown field 'duratoin': did you mean 'duration'"),
        ('"greedy"', '"greedi"', "did you mean 'greedy'"),
        ('"1 epochs"', '"1 epoch of many"', "duration"),
    ],
)
def test_what_is_no_recipe_is_said_before_anything_trains(tiny, old, new, words):
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises(UserError, match=words):
        built(read(str(tiny)), [])


def test_suites_and_tasks_that_are_not_there(tiny):
    with pytest.raises(UserError, match="unknown suite 'cpuu': did you mean 'cpu'"):
        read("cpuu")
    with pytest.raises(UserError, match="No such file"):
        read(str(tiny.with_name("other.toml")))
    with pytest.raises(UserError, match="unknown task 'digit'"):
        chosen(read(str(tiny)), ["digit"], None, [])


def test_rows_of_ones_own_are_in_every_task_once(tiny):
    suite = chosen(read(str(tiny)), [], 1, rows_of("dgl@1; greedy; dgl@1;"))
    assert [row.name for row in suite.tasks[0].rows] == ["backprop", "greedy", "dgl@cuts=1"]
    assert suite.tasks[0].seeds == 1
    assert recipe(suite.tasks[0], suite.tasks[0].rows[-1], 0).cuts == "1"


def line(task: Task, row: Row, seed: int, **fields):
    config = {name: x for name, x in recipe(task, row, seed).to_dict().items() if name != "evidence"}
    known = {"task": task.name, "row": row.name, "seed": seed, "exits": [{"loss": 1.0, "accuracy": 0.5}], "failed": ""}
    known |= {
        "unit": "",
        "smoothed": False,
        "cuts": [1],
        "parameters": [],
        "flops": 2e6,
        "temporaries": 1,
        "base": {"flops": 2e6, "total": 2**20},
        "time": 1.0,
        "rate": 1234.4,
        "measured_in": environment(),
    }
    return {**known, "total": 2**20, "seconds": 3600.0, "environment": environment(), "config": config, **fields}


def test_a_line_of_another_recipe_does_not_count(tmp_path, tiny):
    suite = read(str(tiny))
    task = suite.tasks[0]
    lines = [line(task, row, n) for row in task.rows for n in (0, 1)]
    lines[0]["config"]["learning_rate"] = 3.0
    lines[1]["config"]["eval_batch_size"] = 7  # which changes nothing
    lines[2]["config"]["executor"] = "streamed"  # which changes what a step takes
    del lines[3]["rate"]  # of an older form
    lines.append({**line(task, task.rows[1], 1), "exits": []})
    lines.append({**lines[-1], "config": lines[0]["config"]})  # of another recipe, and newer
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"task": "dig')
    assert sorted(lines_of(path, suite)) == [("digits", "backprop", 1), ("digits", "greedy", 1)]
    assert lines_of(path, suite)["digits", "greedy", 1]["exits"] == []


def test_a_line_that_was_cut_short_harms_no_other(tmp_path, tiny):
    suite = read(str(tiny))
    task, path = suite.tasks[0], tmp_path / "runs.jsonl"
    add_line(path, line(task, task.rows[0], 0))
    path.write_bytes(path.read_bytes()[:-20])
    add_line(path, line(task, task.rows[1], 0))
    add_line(path, line(task, task.rows[0], 1))
    assert sorted(lines_of(path, suite)) == [("digits", "backprop", 1), ("digits", "greedy", 0)]


def test_a_row_on_other_data_keeps_them_to_itself(tiny):
    tiny.write_text(TINY.replace('published = "1.0"', "set = { eval_examples = 50 }"))
    first, second, third = built(chosen(read(str(tiny)), [], None, rows_of("dgl")), []).values()
    assert first.config.eval_examples == 50
    assert second.config.eval_examples == 0
    assert first.dataset is not second.dataset
    assert second.dataset is third.dataset


def test_a_row_is_relative_to_the_first_as_both_were_measured(tiny):
    suite = read(str(tiny))
    task = suite.tasks[0]
    there = {**environment(), "device": "another"}
    found = {"base": {"flops": 4e6, "total": 2**22}, "measured_in": there}
    text = page(suite, [line(task, task.rows[0], 0), line(task, task.rows[1], 0, **found)], "")
    (row,) = [text.split("|")[1:-1] for text in text.splitlines() if text.lstrip("| ").startswith("greedy ")]
    assert [cell.strip() for cell in row][7:13] == ["2.0", "0.50", "1.0", "0.25", "1.00", "-"]


def test_a_loss_that_is_not_finite_is_a_dash(tiny):
    suite = read(str(tiny))
    task, exits = suite.tasks[0], [{"loss": None, "accuracy": 0.1}]
    text = page(suite, [line(task, row, 0, exits=exits, unit="character") for row in task.rows], "")
    assert "| - |" in text.replace("  ", "")
    assert "png" not in text


def test_the_page_says_what_the_lines_say(tiny):
    suite = read(str(tiny))
    task, (first, second) = suite.tasks[0], suite.tasks[0].rows
    exits = [{"loss": 1.0, "accuracy": 0.8}, {"loss": 1.0, "accuracy": 0.7}]
    lines = [
        line(task, first, 0, cuts=[]),
        line(task, second, 0, exits=exits, total=2**19, flops=3e6, time=0.75),
        line(task, second, 1, exits=[exits[0], {"loss": 1.0, "accuracy": 0.6}], seconds=None),
    ]
    text = page(suite, lines, "the command")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| ")]
    assert rows[1][:6] == ["backprop", "1", "-", "1", "50.00", "1.0"]
    assert rows[1][6:] == ["50.00 (exit 1)", "2.0", "1.00", "1.0", "1.00", "1.00", "1,234", "1.00", ""]
    assert rows[2][:6] == ["greedy", "2", "1", "2", "35.00 ± 7.07", "-"]
    assert rows[2][6:] == ["20.00 (exit 1)", "3.0", "1.50", "0.5", "0.50", "0.75", "1,646", "1.00", "linear heads"]
    assert "| - |" in page(suite, [line(task, first, 0, seconds=None)], "").replace("  ", "")
    assert "(benchmark_digits.svg)" in text
    assert "(benchmark_digits.svg)" not in page(suite, lines[:1], "")
    lost = page(suite, [lines[0], line(task, second, 0, exits=[], failed="block 1 diverged")], "")
    assert "linear heads; block 1 diverged" in lost


def test_what_is_to_go_is_told_from_what_is_most_like_it():
    known = {("a", "x", 0): {"seconds": 7200.0}, ("a", "y", 0): {"seconds": 3600.0}, ("b", "x", 0): {"seconds": None}}
    assert to_go(known, [("a", "x", 1)]) == "2.0 h"
    assert to_go(known, [("a", "z", 0)]) == "1.5 h"
    assert to_go(known, [("b", "x", 1), ("a", "y", 1)]) == "2.5 h"
    assert to_go({}, [("a", "x", 1)]) == "not known yet"


@pytest.mark.slow
def test_a_suite_is_trained_goes_on_and_takes_rows(tmp_path, tiny):
    given = [f"--suite={tiny}", f"--workdir={tmp_path / 'runs'}"]
    done = program("benchmark", *given, "--seeds=1")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "runs" / "runs.jsonl"
    assert [(x["row"], x["seed"]) for x in map(json.loads, path.read_text().splitlines())] == [
        ("backprop", 0),
        ("greedy", 0),
    ]
    first = path.read_text()
    path.write_text(first[:-20])  # the last line is cut short: its run is there, and is not trained again
    again = program("benchmark", *given, "--rules=dgl;lopt")
    assert again.returncode == 0, again.stderr
    assert "left out of digits: lopt" in again.stdout
    whole, cut, *others = path.read_text().splitlines()
    assert cut == first.splitlines()[1][:-19]
    lines = list(map(json.loads, (whole, *others)))
    assert [(x["row"], x["seed"]) for x in lines[1:]] == [
        ("greedy", 0),
        ("dgl", 0),
        ("backprop", 1),
        ("greedy", 1),
        ("dgl", 1),
    ]
    assert lines[1]["exits"] == json.loads(first.splitlines()[1])["exits"]
    assert lines[1]["seconds"] is None
    assert all(math.isfinite(x["time"]) and x["total"] > x["temporaries"] > 0 for x in lines)
    assert "<svg" in (tmp_path / "runs" / "benchmark_digits.svg").read_text(encoding="utf-8")
    assert re.search(r"^\|\s*dgl \|", (tmp_path / "runs" / "benchmark.md").read_text(), re.MULTILINE)
    last = program("benchmark", *given, "--rules=dgl;lopt@1")
    assert last.returncode == 0, last.stderr
    assert last.stdout.startswith("left out of digits: lopt@cuts=1")
    assert "[" not in last.stdout.split("#")[0]
    tiny.write_text(TINY.replace("1 epochs", "2 epochs"))
    other = program("benchmark", *given)
    assert other.returncode == 2
    assert other.stderr.count("left out: workdir") == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "--suite is needed"),
        (("--suite=cpu",), "--workdir is needed"),
        (("--suite=cpu", "--only=gpt5"), "unknown task 'gpt5'"),
    ],
)
def test_bad_flags_get_one_line(given, words):
    assert_one_line_error(program("benchmark", *given), words)


def test_a_suite_keeps_its_order():
    rows = (Row("backprop"), Row("greedy"))
    suite = Suite("", (Task("a", "", "x", 1, {}, rows[:1]), Task("b", "", "x", 2, {}, rows)))
    assert [(task.name, row.rule, n) for task, row, n in suite.runs()] == [
        ("a", "backprop", 0),
        ("b", "backprop", 0),
        ("b", "greedy", 0),
        ("b", "backprop", 1),
        ("b", "greedy", 1),
    ]
