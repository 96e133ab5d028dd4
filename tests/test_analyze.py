"""Analysis of runs: what it says is what evaluation and the gradients say."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.calls import parse_call
from experiments.configs import common
from experiments.pages import inside
from experiments.training.trained import restore
from tests.programs import assert_one_line_error, program, train

SMALL = ConfigDict({"name": "mlp", "features": (4,)})


def smoke(rule: str, **changes) -> ConfigDict:
    config = common.finish(common.digits(), "smoke")
    config.rule = ConfigDict(parse_call(rule, "rule"))
    for field, value in changes.items():
        config[field] = value
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    for rule in ("auglocal", "backprop"):
        train(smoke(rule), directory / rule)
    return directory


@pytest.mark.slow
def test_the_program_writes_pictures_and_numbers(runs):
    done = program("analyze", f"--workdir={runs / 'auglocal'}", f"--against={runs / 'backprop'}", "--examples=64")
    assert done.returncode == 0, done.stderr
    directory = runs / "auglocal" / "analysis"
    names = {"exits", "probes", "gradients", "memory", "cka", "confusion"}
    assert {path.name for path in directory.iterdir()} == {"analysis.json"} | {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    numbers = json.loads((directory / "analysis.json").read_text())
    (last,) = [json.loads(line) for line in (runs / "auglocal" / "metrics.jsonl").read_text().splitlines()][-1:]
    np.testing.assert_allclose(numbers["exits_over_time"][-1], [100 * (1 - x) for x in last["accuracy"]], rtol=1e-4)
    assert np.sum(numbers["confusion"]) == 100
    np.testing.assert_allclose(100 - np.trace(numbers["confusion"]), numbers["exits_over_time"][-1][-1], atol=1e-3)
    assert np.shape(numbers["cka"]) == (6, 6)
    assert len(numbers["probes"]) == len(numbers["probes_against"]) == 6
    assert (numbers["exits_are"], numbers["probes_are"]) == ("error %", "error %")
    assert numbers["gradient_cosines"][-1] == pytest.approx(1, abs=1e-4)
    assert all(abs(x) < 1 for x in numbers["gradient_cosines"][:-1])
    assert len(numbers["temporaries_mib"]) == 4
    assert "unit 0, CKA" in done.stdout


@pytest.mark.slow
def test_a_run_is_itself(runs):
    """CKA of every unit with itself is 1, and both runs' probes are one."""
    run = restore(runs / "backprop").with_data()
    seen = inside.look(runs / "backprop", run, probed=200)
    np.testing.assert_allclose(np.diag(inside.similarities(seen, seen)), 1, atol=1e-4)
    np.testing.assert_allclose(inside.cosines(run), [1.0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["tpsgd", "dfa", "man(infopro)", "deep_supervision(predsim)"])
def test_every_kind_of_rule_is_looked_at(rule, tmp_path):
    train(smoke(rule, seeds=2), tmp_path)
    run = restore(tmp_path).with_data().one_seed()
    seen = inside.look(tmp_path, run, probed=200)
    assert len(seen.probes) == len(seen.grams) == 6
    assert np.all(np.isfinite(seen.probes))
    assert len(inside.cosines(run)) == len(run.experiment.blocks)
    assert len(inside.table_of_blocks(run, seen, inside.cosines(run)).splitlines()) == 2 + len(run.experiment.blocks)


@pytest.mark.slow
def test_bad_input_ends_in_one_line(runs, tmp_path):
    done = program("analyze", f"--workdir={runs / 'auglocal'}", f"--against={tmp_path / 'none'}")
    assert_one_line_error(done, "no run in")
    train(smoke("backprop", dataset="random_8_10_100", model=SMALL), tmp_path)
    done = program("analyze", f"--workdir={runs / 'auglocal'}", f"--against={tmp_path}")
    assert_one_line_error(done, "was tested on 100 images 8x8x3 of random_8_10_100", "8x8x1 of digits")
