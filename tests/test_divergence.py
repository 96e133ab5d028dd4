"""One block's NaN: what its neighbours keep, who notices, and what the run does then."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.errors import DIVERGED, UserError
from experiments.recipe import registry
from experiments.recipe.build import build
from experiments.training.divergence import DivergedError
from experiments.training.trained import restore
from experiments.trials.injected import poisoned, small
from tests.programs import train


@pytest.fixture(autouse=True)
def _poisoned_is_a_rule(monkeypatch):
    monkeypatch.setitem(registry.RULES, "poisoned", poisoned)


def config(rule=None, **changes) -> ConfigDict:
    """Three dense blocks, of which block 1 is poisoned at step 5, counted from 1; nothing else is random."""
    spec = {"name": "poisoned", "rule": {"name": "man", "rule": {"name": "greedy"}}, "block": 1, "step": 4}
    changed = {"duration": "12 steps", "eval_every": "3 steps", "eval_examples": 100, **changes}
    model = ConfigDict({"name": "mlp", "features": (8, 8, 8)})
    return small(model=model, rule=ConfigDict({**spec, **(rule or {})}), **changed)


EXECUTORS = {
    "fused": {},
    "streamed": {"executor": "streamed"},
    "pipelined": {"executor": "pipelined", "stages": 2},
    "data_parallel": {"data_parallel": True, "rule": {"device": 2}},
}


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_block_keeps_its_state_and_the_others_never_notice(executor):
    """The same program steps twice: with the key of the poisoned step, and with another one."""
    experiment = build(config(**EXECUTORS[executor]))
    after = []
    for number, hit in ((4, True), (3, False)):
        state = experiment.init().replace(step=jnp.asarray(number, jnp.int32))
        before = jax.device_get(state.blocks)
        for batch in experiment.batches(range(1)):
            state, metrics = experiment.executor.step(state, batch)
        assert [float(m["finite"]) for m in metrics] == [1, 0 if hit else 1, 1]
        assert np.isnan(metrics[1]["loss"]) == hit
        after.append(jax.device_get(state.blocks))
    for i in (0, 2):
        assert same(after[0][i], after[1][i])
        assert not same(after[0][i], before[i])
    kept, old = ({k: v for k, v in s[1].variables.items() if k != "ema"} for s in (after[0], before))
    assert same((kept, after[0][1].opt_state), (old, before[1].opt_state))
    assert not same(after[0][1].opt_state, after[1][1].opt_state)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_run_stops_and_says_which_block(executor, tmp_path):
    with pytest.raises(
        DivergedError, match=r"block 1 diverged at step 5 \(accuracy=.*loss=nan\); the update"
    ) as raised:
        train(config(**EXECUTORS[executor]), tmp_path)
    assert raised.value.code == DIVERGED
    assert "\n" not in str(raised.value)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) <= 5 + (2 if executor == "pipelined" else 1)  # noticed within as many steps as there are stages
    about = json.loads((tmp_path / "postmortem" / "step_5.json").read_text())
    assert about["seeds"][0][1]["loss"] == "nan"
    with np.load(tmp_path / "postmortem" / "step_5.npz", allow_pickle=False) as arrays:
        assert arrays["batch/image"].shape == (32, 8, 8, 1)
        assert all(np.all(np.isfinite(arrays[name])) for name in arrays.files)
        assert any("unit_0" in name for name in arrays.files)
    assert restore(tmp_path).step == 3


def test_a_run_goes_on_without_the_update(tmp_path, capfd):
    train(config(on_divergence="skip"), tmp_path)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "block 1 diverged at step 5" in line
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(restore(tmp_path).state.blocks))


def test_one_of_the_seeds_that_train_together_diverges(tmp_path, capfd):
    train(config(rule={"seed": 1}, on_divergence="skip", seeds=2), tmp_path)
    assert "block 1 of seed 1 diverged at step 5" in capfd.readouterr().err


def test_a_run_goes_back_to_its_last_checkpoint_and_on(tmp_path, capfd):
    results = train(config(on_divergence="rollback"), tmp_path)
    assert "back to step 3" in capfd.readouterr().err
    steps = [line["step"] for line in results.history if line["split"] == "train"]
    assert steps == list(range(1, 13))


def test_going_back_twice_to_the_same_checkpoint_stops(tmp_path):
    """Nothing random is to be had from another key: the rate is what is wrong."""
    model, rate = ConfigDict({"name": "mlp", "features": (8, 8)}), 1e30
    hopeless = small(model=model, rule=ConfigDict({"name": "greedy"}), learning_rate=rate, on_divergence="rollback")
    with pytest.raises(DivergedError):
        train(hopeless, tmp_path)


def test_an_unknown_action_is_refused():
    with pytest.raises(UserError, match=r"unknown on_divergence 'skp': did you mean 'skip'\?"):
        build(config(on_divergence="skp"))
