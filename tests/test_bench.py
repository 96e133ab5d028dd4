"""The benchmark programs, on a network and images that take seconds."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags

from experiments import speed
from experiments.app.errors import UserError
from experiments.drawing.tables import aligned
from experiments.trials.cases import Case, define_flags, parse_cases, split_cuts
from experiments.trials.frontier import Log, pareto, report
from jaxlocal.executors import MIB
from tests.programs import assert_one_line_error, program

TINY = ["--models=resnet(depth=8,width=4)", "--image=8", "--batch_sizes=16"]


def cells(table: str) -> list[dict[str, str]]:
    """The rows of the first table; of columns of the same title, the last."""
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")
    ]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_what_is_measured_is_known_again(tmp_path):
    log = Log(str(tmp_path), "memory")
    for i, case in enumerate(cases("--rules=dgl", "--cuts=2", "--executors=fused")):
        log.add(case, {"total": float(i)})
    assert len(log.known) == 2
    assert Log(str(tmp_path), "memory").known == log.known


@pytest.mark.slow
def test_memory_compiles_each_case_once(tmp_path):
    """A refused case is a line; what is known is not measured again; a line cut short is."""
    given = [*TINY, "--rules=dgl,auglocal(depth=7)", "--executors=streamed", f"--workdir={tmp_path}"]
    done = program("memory", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n[") + done.stdout.startswith("[") == 3
    assert "skipped: auglocal(depth=7), all, streamed: " in done.stdout
    rows = cells((tmp_path / "table.md").read_text())
    assert [(row["rule"], row["cuts"], row["executor"]) for row in rows] == [
        ("backprop", "-", "fused"),
        ("dgl", "all", "streamed"),
    ]
    assert "*" in [row["frontier"] for row in rows]
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (tmp_path / "memory.jsonl").read_text().splitlines()]
    assert [line["numbers"].get("programs") for line in lines] == [1, 5, None]
    assert all(line["environment"]["jax"] for line in lines)
    assert lines[0]["numbers"]["total"] < lines[0]["numbers"]["state"] + 16 * 8 * 8 * 3 * 1000  # without 1024 images

    (tmp_path / "memory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:2]) + '{"case": {"mo')
    again = program("memory", *given)
    assert again.returncode == 0, again.stderr
    assert "[3/3]" in again.stdout
    assert "[1/3]" not in again.stdout
    assert "[2/3]" not in again.stdout
    assert cells((tmp_path / "table.md").read_text()) == rows
    assert len((tmp_path / "memory.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_speed_is_relative_to_backprop(tmp_path):
    """All cases of a group take turns; the second run measures nothing; a new case makes it measure the group again."""
    given = [
        "--models=mlp(features=(16, 16, 16))",
        *TINY[1:],
        "--rules=greedy",
        "--executors=fused",
        "--cuts=2",
        "--rounds=2",
        "--least=0.01",
    ]
    given += ["--accumulate=2", f"--workdir={tmp_path}"]
    done = program("speed", *given)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line)["numbers"] for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [line["blocks"] for line in lines] == [1, 1, 2]
    assert lines[0]["time"] == 1
    for line in lines:
        assert len(line["rounds"]) == 2
        assert line["images_per_second"] == pytest.approx(16 / line["seconds"])
        assert line["seconds"] == pytest.approx(np.median(line["rounds"]))
        assert line["time"] == pytest.approx(np.median(np.divide(line["rounds"], lines[0]["rounds"])))
    rows = cells((tmp_path / "table.md").read_text())
    assert [row["batch"] for row in rows] == ["16", "2 x 8", "16"]
    assert rows[0]["time ÷ FLOPs"] == "1.00"
    best = pareto([(line["total"] / MIB, line["time"]) for line in lines])
    assert [row["frontier"] for row in rows] == ["*" * x for x in best]
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    again = program("speed", *given)
    assert again.returncode == 0, again.stderr
    assert "compiling" not in again.stdout
    assert cells((tmp_path / "table.md").read_text()) == rows


@pytest.mark.slow
def test_what_the_device_has_no_memory_for_is_skipped(monkeypatch, tmp_path):
    """A step that does not fit is a line; without backprop the others still have a table."""

    def turns(runs, **options):
        if any(of.config.rule.name == "backprop" for of in runs.values()):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return {name: [0.5] for name in runs}

    monkeypatch.setattr(speed, "turns", turns)
    for name, value in (("rounds", 1), ("least", 0), ("against", None)):
        monkeypatch.setattr(
            speed, f"_{name.upper()}", SimpleNamespace(value=value), raising=False
        )  # defined where it is the program
    backprop, dgl = cases("--rules=dgl", "--cuts=2", "--executors=fused")
    numbers = speed.measure([backprop, dgl])
    assert "not enough memory" in numbers[backprop]["skipped"]
    assert numbers[dgl]["images_per_second"] == 32
    log = Log(str(tmp_path), "speed")
    for case, x in numbers.items():
        log.add(case, x)
    report(log, [backprop, dgl], speed._COLUMNS, "total", speed._HEIGHT, "frontier.png")
    (row,) = cells((tmp_path / "table.md").read_text())
    assert (row["rule"], row["img/s"], row["time ÷ backprop's"]) == ("dgl", "32", "-")
    assert not (tmp_path / "frontier.png").exists()


def cases(*given: str) -> list[Case]:
    values = flags.FlagValues()
    define_flags(values)
    values(["", *TINY, *given])
    return parse_cases(values)


@pytest.mark.parametrize("module", ["memory", "speed"])
def test_bad_flags_get_one_line(module):
    assert_one_line_error(program(module, "--rules=auglocl", "--workdir=/tmp/x"), "did you mean 'auglocal'")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_sizes=12,x", "--batch_sizes: .* 'x'"),
        ("--accumulate=0", "--accumulate=0: give whole numbers"),
        ("--models=resnet(depth=9)", "6n"),
        ("--rules=dgl,dgl", "name each once"),
        ("--cuts=evn:4", "--cuts: .*even:K"),
        ("--cuts=even:5", "--cuts: cannot cut 4 units into 5"),
        ("--cuts=", "--cuts: "),
        ("--executors=fuse", "did you mean 'fused'"),
        ("--dtypes=", "unknown dtype"),
    ],
)
def test_flags_that_fit_no_case(flag, message):
    with pytest.raises(UserError, match=message):
        cases(flag)


def test_the_workdir_must_be_writable():
    for workdir, message in ((None, "--workdir is needed"), ("/proc/nowhere", "cannot be written")):
        with pytest.raises(UserError, match=message):
            Log(workdir, "memory")


def test_cases_that_make_no_sense_are_none():
    """Backprop has no cuts and one executor; the others do not accumulate; a group needs its backprop once."""
    found = cases("--rules=dgl,remat(backprop),backprop", "--cuts=all,2,3", "--accumulate=1,4", "--batch_sizes=16,32")
    assert [case.label() for case in found[:8]] == [
        "backprop",
        "backprop, 4 x 4",
        "dgl, all, fused",
        "dgl, all, streamed",
        "dgl, 2,3, fused",
        "dgl, 2,3, streamed",
        "remat(backprop)",
        "remat(backprop), 4 x 4",
    ]
    assert [case.batch_size for case in found] == [16] * 8 + [32] * 8
    assert found[7].config().batch_size == 4


def test_cuts_in_a_row_are_one_case():
    assert split_cuts("all, 3,6,even:4,balanced:2,5") == ["all", "3,6", "even:4", "balanced:2", "5"]


def test_no_other_point_is_better_than_one_on_the_frontier():
    assert pareto([(1, 3), (2, 2), (2, 3), (3.0001, 1), (3, 1), (1, 4)]) == [True, True, False, True, True, False]


def test_a_case_says_what_distinguishes_it():
    case = Case("vgg", 16, "float32", 8, 10, "dgl(depth=3)", "3", "fused", 1)
    assert case.label(" (K=2)") == "dgl(depth=3), 3 (K=2), fused"
    assert case.baseline.label() == "backprop"
    assert case.baseline._replace(accumulate=4).label() == "backprop, 4 x 4"


def test_columns_are_aligned():
    assert aligned([("a", "b"), ("long", "1")]) == "|    a | b |\n|-----:|--:|\n| long | 1 |"
