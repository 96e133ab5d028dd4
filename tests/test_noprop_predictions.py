"""NoProp's predictions start from an image's own noise, whatever it is batched with."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recipe.build import build, rebuilt
from experiments.training import classify
from experiments.training.trained import Trained
from jaxlocal import Batch, DataParallel, Network, Task, diagnostics, fused, make_blocks, models, rules, streamed
from jaxlocal.data.augment import RECIPES, STREAMED, normalise
from jaxlocal.diffusion import normal_of
from jaxlocal.executors import ONE_DEVICE
from tests import toy
from tests.test_data_parallel import parts
from tests.test_programs import digits

RULES = {
    "dt": rules.noprop_dt(),
    "stochastic": rules.noprop_dt(stochastic=True),
    "ct": rules.noprop_ct(steps=3),
    "fm": rules.noprop_fm(steps=3),
    "baseline": rules.backprop(),
}


def blocks_of(rule):
    network, local = rule(Network(models.noprop(3, width=0.1), ()), Task(10))
    return make_blocks(network, local), local.feed


def chosen(batch: Batch, rows) -> Batch:
    return jax.tree.map(lambda x: x[np.array(rows)], batch)


def test_noise_follows_from_the_image_alone():
    image, like = toy.digits(6).input, jnp.zeros((6, 10))
    noise = normal_of(image, 0, like)
    order = np.array([3, 0, 5])
    np.testing.assert_allclose(normal_of(image[order], 0, like[:3]), noise[order], rtol=1e-6)
    np.testing.assert_allclose(normal_of(image[4:5], 0, like[:1]), noise[4:5], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(normal_of, static_argnums=1)(image, 0, like), noise, rtol=1e-5)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(normal_of(image, 0, like), noise)
    half = normal_of(image.astype(jnp.bfloat16), 0, like.astype(jnp.bfloat16))
    np.testing.assert_array_equal(half, noise.astype(jnp.bfloat16))


def test_noise_of_images_and_draws_is_independent():
    """Of images that differ in one pixel, too."""
    image = jnp.zeros((64, 8, 8, 1)).reshape(64, 64).at[jnp.arange(64), jnp.arange(64)].set(1 / 16).reshape(64, 8, 8, 1)
    draws = np.concatenate([normal_of(image, i, jnp.zeros((64, 500))) for i in range(2)])
    assert draws.mean() == pytest.approx(0, abs=0.02)
    correlations = np.corrcoef(draws)
    np.testing.assert_allclose(correlations, np.eye(128), atol=6 / np.sqrt(500))
    assert draws.var() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("recipe", tuple(dict.fromkeys((*RECIPES.values(), STREAMED))), ids=str)
def test_no_byte_is_normalised_to_where_bfloat16_rounds(recipe):
    """So two programs that normalise with another last bit give an image the same noise."""
    every = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8)[:, None, None, None], (256, 1, 1, len(recipe.mean)))
    low = np.asarray(normalise(every, recipe)).view(np.uint32) & 0xFFFF
    assert np.abs(low.astype(int) - 0x8000).min() > 4


@pytest.mark.parametrize("name", RULES)
@pytest.mark.slow
def test_a_prediction_depends_on_the_image_alone(name):
    """Alone, first, last and among others: the logits of every exit."""
    blocks, feed = blocks_of(RULES[name])
    batch = toy.digits(6)
    state = fused(blocks, feed, toy.OPTIMIZER).init(jax.random.key(0), chosen(batch, [0]))

    def logits(rows):
        observed = diagnostics.observe(blocks, feed, state, chosen(batch, rows), dtype=jnp.float32)
        return np.stack([x for x in observed.logits if x is not None], axis=1)

    everyone = logits(range(6))
    for rows in ([2], [5, 4, 3, 2, 1, 0], [4, 2, 4]):
        np.testing.assert_allclose(logits(rows), everyone[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stochastic", "fm"])
def test_two_devices_evaluate_as_one_does(name):
    """Losses, too, which draw noise of their own; fused, streamed, and one of two seeds."""
    blocks, feed = blocks_of(RULES[name])
    batch, two = toy.digits(8), DataParallel(jax.devices()[:2])
    executor = fused(blocks, feed, toy.OPTIMIZER)
    key = jax.random.key(0)
    state = executor.init(key, chosen(batch, [0]))
    expected = jax.device_get(executor.evaluate(state, batch))
    for make in (fused, streamed):
        on_two = make(blocks, feed, toy.OPTIMIZER, placement=two)
        found = on_two.evaluate(two.replicate(state), parts(chosen(batch, range(7, -1, -1)), two))
        chex.assert_trees_all_close(jax.device_get(found), expected, rtol=1e-4)
    seeds = fused(blocks, feed, toy.OPTIMIZER, seeds=True)
    both = seeds.evaluate(jax.tree.map(lambda x: jnp.stack([x, x]), state), ONE_DEVICE.spread(batch, 0))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], jax.device_get(both)), expected, rtol=1e-4)


@pytest.mark.slow
def test_no_batch_size_changes_an_evaluation_or_a_prediction():
    config = digits(
        model={"name": "noprop", "steps": 2, "width": 0.1},
        rule={"name": "noprop_dt", "stochastic": True},
        cuts="all",
        eval_batch_size=20,
        eval_examples=20,
    )
    experiment = build(config)
    state = experiment.init()
    whole = experiment.evaluate(state)
    chex.assert_trees_all_close(rebuilt(experiment, eval_batch_size=7).evaluate(state), whole, rtol=1e-4)
    trained = Trained(experiment, 0, state)
    images = np.random.default_rng(0).integers(0, 256, (5, *experiment.dataset.example(1).input.shape[1:]), np.uint8)
    together = classify.predict(trained, images)
    np.testing.assert_allclose(classify.predict(trained, images[3:4]), together[:, 3:4], rtol=1e-4)
