"""Analysis of language models: examples are positions, and what is known of simple networks is found."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.pages import inside
from experiments.recipe.build import build
from experiments.training.trained import Trained, restore
from jaxlocal import diagnostics
from jaxlocal.block import BlockState
from tests.programs import assert_one_line_error, program, train
from tests.test_text_metrics import tiny

LETTERS = "abcdefgh"


@pytest.fixture
def circle(tmp_path) -> ConfigDict:
    """Of a text in which every letter says the next one. One window of nine letters in eight is the same."""
    (tmp_path / "circle").write_text(LETTERS * 200)
    config = tiny("greedy", "2", dataset=f"text:{tmp_path / 'circle'}", eval_examples=0)
    config.model.vocabulary = len(LETTERS)
    return config


def plain(config: ConfigDict) -> Trained:
    """A network of known outputs: letters are unit vectors, positions nothing, layers add nothing; heads are equal."""
    experiment = build(config)
    state = experiment.init()

    def known(path, x):
        names = [key.key for key in path]
        if names[-1] == "tokens":
            return jnp.eye(*x.shape)
        added = names[-1] == "positions" or names[-2:] in (["projection", "kernel"], ["output", "kernel"])
        return jnp.zeros_like(x) if added else x

    head = state.blocks[-1].variables["params"]["head"]
    blocks = tuple(
        BlockState(
            {"params": {**jax.tree_util.tree_map_with_path(known, own.variables["params"]), "head": head}},
            own.opt_state,
        )
        for own in state.blocks
    )
    return Trained(experiment, 0, state.replace(blocks=blocks))


def test_positions_are_drawn_from_each_window_without_repetition_and_by_its_number():
    at = diagnostics.drawn_positions(jax.random.key(0), 0, 50, 12, 5)
    assert at.shape == (50, 5)
    assert all(len(set(row)) == 5 for row in at.tolist())
    assert set(at.flatten().tolist()) == set(range(12))
    np.testing.assert_array_equal(at[30:], diagnostics.drawn_positions(jax.random.key(0), 30, 20, 12, 5))
    x = jnp.arange(50 * 12 * 2).reshape(50, 12, 2)
    expected = [x[i, j] for i, row in enumerate(at.tolist()) for j in row]
    np.testing.assert_array_equal(diagnostics.at_positions(x, at), expected)


def test_what_is_known_of_a_plain_network_is_found(circle, tmp_path):
    """Every unit tells the letter, so a probe tells the next one; the Gram matrix says which letters are equal."""
    run = plain(circle)
    found = inside.look(tmp_path, run, examples=60, probed=300)
    np.testing.assert_allclose(found.probes, [100] * 4)  # accuracy, not error
    assert found.confusion is None
    letters = inside.seen(run, "test", 60).labels
    one_hot = np.eye(8)[np.asarray(letters)]
    centred = one_hot - one_hot.mean(0)
    assert len(found.grams) == 4
    for gram in found.grams:
        np.testing.assert_allclose(gram, centred @ centred.T, atol=1e-5)
    np.testing.assert_allclose(inside.similarities(found, found), np.ones((4, 4)), atol=1e-4)
    exits = [block["loss"] for block in run.experiment.evaluate(run.state)[0]]
    np.testing.assert_allclose(found.exits, exits)


def test_gradients_agree_where_layers_add_nothing_and_heads_are_equal(circle):
    """Then every local loss is the last one; another head is another loss, and the last block keeps its own."""
    run = plain(circle)
    np.testing.assert_allclose(inside.cosines(run, 20), [1, 1], atol=1e-5)
    first, last = run.state.blocks
    table = first.variables["params"]["head"]["dense"]["kernel"]
    other = {"params": {**first.variables["params"], "head": {**first.variables["params"]["head"]}}}
    other["params"]["head"]["dense"] = {"kernel": jnp.roll(table, 1, axis=1)}
    moved = run._replace(state=run.state.replace(blocks=(BlockState(other, first.opt_state), last)))
    cosines = inside.cosines(moved, 20)
    assert cosines[0] < 0.9
    assert cosines[1] == pytest.approx(1, abs=1e-5)


def test_as_many_positions_as_are_asked_for(circle):
    """Of few windows all positions, at most; the same ones whatever batches they come in."""
    run = plain(circle)
    assert run.experiment.dataset.num_test == 19
    counts = [len(inside.seen(run, "test", most).labels) for most in (2, 30, 100, 10**6)]
    assert counts == [2, 30, 100, 19 * 8]
    again = plain(ConfigDict({**circle.to_dict(), "eval_batch_size": 5}))
    np.testing.assert_array_equal(inside.seen(run, "test", 100).labels, inside.seen(again, "test", 100).labels)
    assert inside.examples_of(run).startswith("19 windows of 8 characters of text:")


@pytest.mark.parametrize("rule", ["dfa", "deep_supervision(greedy)", "shared(greedy)", "greedy(tokens=2)"])
def test_units_of_every_kind_of_rule_have_features_at_positions(rule):
    experiment = build(tiny(rule, "2"))
    run = Trained(experiment, 0, experiment.init())
    found = inside.seen(run, "test", 40)
    assert [x.shape for x in found.units] == [(40, 8)] * 4
    assert np.isfinite(inside.cosines(run, 16)).all()


def test_a_unit_without_positions_is_one_line(circle, monkeypatch):
    run = plain(circle)
    units = tuple(jnp.ones((3, n)) for n in (8, 16))
    monkeypatch.setattr(diagnostics, "observe", lambda *_, **__: diagnostics.Observed(units, (None,)))
    with pytest.raises(UserError, match=r"unit 1 puts out \[3, 16\]: nothing for each of 8 positions"):
        inside.seen(run, "test", 20)


@pytest.mark.slow
def test_the_program_writes_pictures_and_numbers_of_a_text(tmp_path):
    for rule in ("greedy", "backprop"):
        train(tiny(rule, "2"), tmp_path / rule)
    flags = [f"--workdir={tmp_path / 'greedy'}", f"--against={tmp_path / 'backprop'}", "--examples=64", "--probed=200"]
    done = program("analyze", *flags)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "greedy" / "analysis"
    names = {"exits", "probes", "gradients", "memory", "cka"}  # no confusion
    assert {path.name for path in directory.iterdir()} == {"analysis.json"} | {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    numbers = json.loads((directory / "analysis.json").read_text())
    (last,) = [json.loads(line) for line in (tmp_path / "greedy" / "metrics.jsonl").read_text().splitlines()][-1:]
    np.testing.assert_allclose(numbers["exits"], last["loss"], rtol=1e-4)
    assert (numbers["exits_are"], numbers["probes_are"]) == ("nats per character", "accuracy %")
    assert (numbers["examples"], np.shape(numbers["cka"]), len(numbers["probes"])) == (64, (4, 4), 4)
    assert numbers["gradient_cosines"][-1] == pytest.approx(1, abs=1e-4)
    assert "exit, nats per character" in done.stdout
    assert "probe, accuracy %" in done.stdout
    drawn = (directory / "probes.svg").read_text()
    assert "validation accuracy of a linear probe (%)" in drawn
    train(common.finish(common.digits(), "smoke"), tmp_path / "digits")
    done = program("analyze", flags[0], f"--against={tmp_path / 'digits'}")
    assert_one_line_error(done, "windows of 8 characters of tinyshakespeare", "images 8x8x1 of digits")
    assert restore(tmp_path / "greedy").step == 4
