"""Adaptors: they start from what a trained network does, and it stays as it was."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.training.trained import restore
from jaxlocal import data, models, rules, sampling
from jaxlocal.rules.adapt import Adapted, adopted
from jaxlocal.variables import apply_module, cast, init_module, nest, pick
from tests import toy
from tests.programs import train
from tests.test_gpt import batch_of, made

KEY = jax.random.key(0)


@pytest.fixture
def adam():
    """Optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def digits(**changes) -> ConfigDict:
    """Two dense layers on digits, by tpSGD."""
    config = common.mnist()
    config.update({"dataset": "digits", "batch_size": 64, "duration": "8 epochs", "log_every": "8 epochs"})
    config.update({"eval_every": "8 epochs", "learning_rate": 5e-3})
    config.model.features = (64, 64)
    config.rule = ConfigDict({"name": "tpsgd"})
    config.update(changes)
    return config


def test_starts_from_the_unit_and_leaves_it_alone():
    x = toy.digits().input
    unit = models.resnet(8, 4)[1]
    before = jax.random.normal(KEY, (*x.shape[:3], 4))
    y, trained = init_module(unit, KEY, before)
    adapted = Adapted(unit)
    variables = adopted(init_module(adapted, jax.random.key(1), before)[1], trained)
    chex.assert_trees_all_equal(variables["fixed"]["trained"], trained)
    out, mutated = apply_module(adapted, variables, before, KEY, train=True)
    np.testing.assert_array_equal(out, y)  # on running statistics, in training too
    assert not mutated.get("batch_stats")
    layer = {"kernel": (4, 4), "bias": (4,)}
    assert jax.tree.map(jnp.shape, variables["params"]) == {"inner": layer, "outer": layer}
    ones = jax.tree.map(jnp.ones_like, variables["params"])
    out, _ = apply_module(adapted, {**variables, "params": ones}, before, KEY, train=True)
    np.testing.assert_allclose(out, y + 4 * np.tanh(y.sum(-1, keepdims=True) + 1) + 1, rtol=1e-4, atol=1e-5)


def test_units_that_differ_are_refused():
    small, large = (init_module(models.mlp((f,))[0], KEY, jnp.ones((1, 3)))[1] for f in (4, 5))
    with pytest.raises(ValueError, match="structure or shapes"):
        adopted(small, large)


def test_a_unit_that_puts_out_no_array_is_refused():
    with pytest.raises(ValueError, match="puts out no array"):
        toy.make(toy.on(models.noprop(2, width=0.1), rules.adapt(rules.backprop())))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (rules.adapt(rules.man(rules.greedy())), "adapt freezes the units: it cannot go around a rule that follows"),
        (rules.man(rules.adapt(rules.greedy())), "man goes around a rule that neither changes the units"),
    ],
)
def test_momentum_auxiliaries_are_refused(rule, message):
    """Their averages follow what trains of the next unit, which is not the unit any more."""
    with pytest.raises(ValueError, match=message):
        toy.make(rule)


def test_auxiliaries_without_an_average_are_not():
    t = toy.make(toy.on(models.mlp((12, 8)), rules.adapt(rules.man(rules.greedy(), ema=False))))
    t.executor.step(t.state, t.batch)


def test_gradients_of_adaptors_are_summed_in_float32():
    """The outer bias of a sum of all outputs counts them, which bfloat16 gives up at 256."""
    x = jnp.ones((1024, 3), jnp.bfloat16)
    adapted = Adapted(models.mlp((2,))[0])
    variables = cast(init_module(adapted, KEY, x.astype(jnp.float32))[1], jnp.bfloat16)

    def total(params):
        return jnp.sum(adapted.apply({**variables, "params": params}, x, train=True), dtype=jnp.float32)

    np.testing.assert_array_equal(jax.grad(total)(variables["params"])["outer"]["bias"].astype(jnp.float32), 1024)


def test_frozen_statistics_keep_their_precision():
    """At whatever depth: a unit that is adapted twice has its own two levels down."""
    x = toy.digits().input
    _, variables = init_module(Adapted(Adapted(models.ConvUnit(4))), KEY, x)
    found = jax.tree_util.tree_leaves_with_path(cast(variables, jnp.bfloat16))
    running = {leaf.dtype for path, leaf in found if "batch_stats" in jax.tree_util.keystr(path)}
    others = {leaf.dtype for path, leaf in found if "batch_stats" not in jax.tree_util.keystr(path)}
    assert (running, others) == ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)})


def test_only_adaptors_and_heads_train():
    t = toy.make(rules.adapt(rules.tpsgd()))
    after, _ = t.executor.step(toy.copy(t.state), t.batch)
    for old, new in zip(t.state.blocks, after.blocks, strict=True):
        chex.assert_trees_all_equal(new.variables["fixed"], old.variables["fixed"])
        assert jnp.any(new.variables["params"]["unit_0"]["outer"]["kernel"] != 0)
        assert set(new.variables["params"]["unit_0"]) == {"inner", "outer"}


def test_rotated_images():
    plain, rotated = data.load("digits"), data.load("rotated_90_digits")
    np.testing.assert_array_equal(rotated.train.image, np.rot90(plain.train.image, axes=(1, 2)))
    np.testing.assert_array_equal(rotated.test.label, plain.test.label)
    one = ndimage.rotate(plain.test.image[3, :, :, 0], 30, reshape=False, order=1)
    np.testing.assert_array_equal(data.load("rotated_30_digits").test.image[3, :, :, 0], one)
    with pytest.raises(ValueError, match="rotated_DEGREES_NAME"):
        data.load("rotated_x_digits")


@pytest.mark.slow
def test_a_network_meets_another_domain(tmp_path, adam):
    """The run starts at what the trained network does there, gets better, and every trained number is still there."""
    source = train(digits(), tmp_path / "source")
    shift = {"dataset": "rotated_45_digits", "start_from": str(tmp_path / "source")}
    adapted = train(digits(**shift, rule={"name": "adapt", "rule": {"name": "tpsgd"}}), tmp_path / "adapted")
    start, end = (line["accuracy"][-1] for line in adapted.history if line["split"] == "test")
    assert start < source.seeds[0][-1]["accuracy"] - 0.2
    assert end > start + 0.2

    old, new = restore(tmp_path / "source").state, restore(tmp_path / "adapted").state
    for was, now in zip(old.blocks, new.blocks, strict=True):
        chex.assert_trees_all_equal(now.variables["fixed"]["unit_0"]["trained"], pick(was.variables, "unit_0"))
        # A layer's target is the one that it has learned to put out.
        chex.assert_trees_all_equal(now.variables["fixed"]["head"], was.variables["fixed"]["head"])

    # With all weights free and under other cuts, training starts from the same network.
    whole = train(digits(**shift, cuts="even:1"), tmp_path / "whole")
    assert next(line["accuracy"][-1] for line in whole.history if line["split"] == "test") == pytest.approx(start)


def test_another_network_is_refused(tmp_path, adam):
    train(digits(duration="1 steps", schedule="constant"), tmp_path / "source")
    other = digits(start_from=str(tmp_path / "source"))
    other.model.features = (64, 65)
    with pytest.raises(UserError, match="unit 1 is not that of this network"):
        train(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    other.model.features = (64, 64, 64)
    with pytest.raises(UserError, match="it has 2 units, this network 3"):
        train(other, tmp_path / "other")
    other.start_from = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="no run in"):
        train(other, tmp_path / "other")


@pytest.mark.slow
def test_a_language_model_keeps_its_weights_and_its_cache():
    """Of one that adaptors, as they start, change nothing of: tokens at once, or one by one behind a cache."""
    batch = batch_of()
    *_, state = made(rules.greedy())
    _, blocks, feed, executor, adapted = made(rules.adapt(rules.greedy()))
    variables = [adopted_block(new, old) for new, old in zip(adapted.blocks, state.blocks, strict=True)]
    _, plain, plain_feed, *_ = made(rules.greedy())
    expected, _ = sampling.scores(plain, plain_feed, [block.variables for block in state.blocks], batch.input)
    assert np.std(expected) > 0.01
    got, cache = sampling.scores(blocks, feed, variables, batch.input.at[:, 3:].set(7))
    np.testing.assert_allclose(got[:, :3], expected[:, :3], rtol=1e-5, atol=1e-6)
    cache = sampling.rewound(cache, 3)
    for t in range(3, 8):
        got, cache = sampling.scores(blocks, feed, variables, batch.input[:, t : t + 1], cache)
        np.testing.assert_allclose(got[:, 0], expected[:, t], rtol=1e-5, atol=1e-6)

    trained, _ = executor.step(toy.copy(adapted), batch)
    for before, after in zip(adapted.blocks, trained.blocks, strict=True):
        chex.assert_trees_all_equal(after.variables["fixed"], before.variables["fixed"])
        assert "cache" not in after.variables


def adopted_block(new, old):
    """A block's variables, with what was trained in its unit and its head."""
    unit = adopted(pick(new.variables, "unit_0"), pick(old.variables, "unit_0"))
    return nest(unit_0=unit, head=pick(old.variables, "head"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (rules.backprop(), r"adapt freezes the embedding, which a tied output trains: choose tied=False"),
        (rules.dfa(), "puts out no array"),
        (rules.deep_supervision(rules.greedy()), "puts out no array"),
        (rules.shared(rules.greedy()), "a rule that follows other blocks"),
    ],
)
def test_rules_of_tokens_that_adaptors_cannot_go_around(rule, words):
    with pytest.raises(ValueError, match=words):
        made(rules.adapt(rule), tied=True)
