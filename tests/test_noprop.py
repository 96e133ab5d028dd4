"""NoProp's schedules, coefficients and feeds against algebra and sampling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlocal import Batch, Network, Task, make_blocks, models, rules
from jaxlocal.diffusion import Schedule, cosine_schedule, gaussian_kl, noised, normal
from jaxlocal.executors import fused
from jaxlocal.models.noprop import Diffusion
from jaxlocal.network import cut_everywhere
from tests import toy

STEPS = 4
SCHEDULES = [cosine_schedule(10), cosine_schedule(STEPS), Schedule((0.1, 0.3, 0.5, 0.9, 0.95))]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_leads_from_one_marginal_to_the_next(schedule):
    """Mean and variance of ``a u + b z + sqrt(c) eps`` under q(z_{t-1} | y) are those of q(z_t | y)."""
    for t in range(1, len(schedule.signal)):
        before, after = schedule.signal[t - 1 : t + 1]
        a, b, c = schedule.posterior(t)
        assert a + b * np.sqrt(before) == pytest.approx(np.sqrt(after), abs=1e-12)
        assert b**2 * (1 - before) + c == pytest.approx(1 - after, abs=1e-12)


def test_posterior_by_sampling():
    """The joint distribution, too: Bayes' rule for q(z_{t-1} | z_t) q(z_t) has the same covariance."""
    schedule, t, n = cosine_schedule(10), 6, 400_000
    u = jnp.full((n, 1), 0.7)
    keys = jax.random.split(jax.random.key(0), 2)
    before = noised(u, schedule.signal[t - 1], normal(keys[0], u))
    a, b, c = schedule.posterior(t)
    after = a * u + b * before + np.sqrt(c) * jax.random.normal(keys[1], u.shape)
    signal = schedule.signal[t]
    error = 4 / np.sqrt(n)  # four standard errors
    assert float(after.mean()) == pytest.approx(np.sqrt(signal) * 0.7, abs=error)
    assert float(after.var()) == pytest.approx(1 - signal, abs=2 * error)
    covariance = float(jnp.mean((after - after.mean()) * (before - before.mean())))
    # z_{t-1} is z_t with more noise: sqrt(alpha) z_t + ..., so their covariance is sqrt(alpha) (1 - signal_t).
    alpha = schedule.signal[t - 1] / signal
    assert covariance == pytest.approx(np.sqrt(alpha) * (1 - signal), abs=2 * error)


def test_the_cosine_schedule_goes_from_noise_to_label():
    signal = cosine_schedule(10).signal
    assert signal[0] == pytest.approx(0, abs=1e-12)
    assert 0.999 < signal[-1] < 1
    assert (np.diff(signal) > 0).all()


def rule_and_blocks(eta=0.1, steps=STEPS, stochastic=False, **options):
    units = models.noprop(steps, width=0.1, **options)
    network, local = rules.noprop_dt(eta, stochastic=stochastic)(Network(units, ()), Task(10))
    return local, make_blocks(network, local)


def diffusion(image):
    """What the owner of one-hot embeddings puts out, but zeros for the noise."""
    zeros = jnp.zeros((len(image), 10))
    return Diffusion(image, zeros, jnp.eye(10), jnp.eye(10), jnp.zeros(10), zeros, jnp.ones(len(image)))


def test_weights_telescope():
    """The blocks' weights add up to eta/2 (SNR(T) - SNR(0)): half the paper's, times T and E_t = 1/T."""
    local, blocks = rule_and_blocks(eta=0.3)
    batch = toy.digits()
    schedule = cosine_schedule(STEPS)
    carry = diffusion(batch.input)
    total = 0.0
    for t, objective in enumerate(local.objectives[1:], 1):
        fed = local.feed(t, carry, batch, jax.random.key(1), train=True)
        out = objective.apply({}, fed, batch, jax.random.key(0), train=True)
        total += float(out.loss / out.metrics["error"])
    assert blocks[1] == blocks[STEPS - 1] != blocks[STEPS]  # compiled once
    assert total == pytest.approx(0.15 * (schedule.snr(STEPS) - schedule.snr(0)), rel=1e-4)
    assert len(blocks) == STEPS + 1


def test_kl_of_gaussians():
    u = jnp.asarray([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]])
    signal, n = 0.3, 200_000
    u_of_each = jnp.repeat(u, n, axis=0)
    z = noised(u_of_each, signal, normal(jax.random.key(0), u_of_each)).reshape(2, n, 3)
    log_q = jax.scipy.stats.norm.logpdf(z, np.sqrt(signal) * u[:, None], np.sqrt(1 - signal)).sum(-1)
    log_p = jax.scipy.stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(gaussian_kl(u, signal), (log_q - log_p).mean(1), atol=0.02)
    np.testing.assert_allclose(gaussian_kl(u, 0.0), 0, atol=1e-7)


def test_a_block_in_training_sees_the_label_under_the_noise_of_its_step():
    local, _ = rule_and_blocks()
    n = 20_000
    label = jnp.arange(n) % 10
    image = jnp.zeros((n, 1, 1, 1))
    batch = Batch(image, label)
    carry = diffusion(image)
    schedule = cosine_schedule(STEPS)
    for t in range(1, STEPS + 1):
        z = local.feed(t, carry, batch, jax.random.key(t), train=True).z
        own = z[jnp.arange(n), label]
        signal = schedule.signal[t - 1]
        assert float(own.mean()) == pytest.approx(np.sqrt(signal), abs=4 / np.sqrt(n))
        assert float((z - np.sqrt(signal) * jax.nn.one_hot(label, 10)).var()) == pytest.approx(1 - signal, abs=0.02)


class Perfect(nn.Module):
    """A denoiser that finds the class in the image's first pixel."""

    @nn.compact
    def __call__(self, carry, *, train):
        return carry._replace(logits=100.0 * jax.nn.one_hot(carry.image[:, 0, 0, 0].astype(int), 10))


@pytest.mark.parametrize("stochastic", [False, True])
def test_with_a_perfect_denoiser_the_label_comes_out(stochastic):
    local, blocks = rule_and_blocks(stochastic=stochastic)
    label = jnp.arange(64) % 10
    batch = Batch(jnp.broadcast_to(label[:, None, None, None], (64, 8, 8, 1)).astype(jnp.float32), label)
    units = (blocks[0].units[0], *(Perfect() for _ in blocks[1:]))
    with_perfect = make_blocks(Network(units, cut_everywhere(units)), local)
    executor = fused(with_perfect, local.feed, toy.OPTIMIZER)
    state = executor.init(jax.random.key(0), jax.tree.map(lambda x: x[:1], batch))
    params = state.blocks[0].variables["params"]["unit_0"]
    params["kernel"], params["bias"] = jnp.eye(10), jnp.zeros(10)
    exits = executor.evaluate(state, batch)
    assert exits[-1]["accuracy"] == 1
    assert exits[0]["accuracy"] < 0.4  # of noise
    assert all(block["error"] < 1e-6 for block in exits[1:])


def test_embeddings():
    units = models.noprop(2, embedding="learned", features=16, width=0.1)
    _, blocks = rule_and_blocks(embedding="learned", features=16)
    assert len(units) == 4
    table = init_table(blocks[0])
    np.testing.assert_allclose(table @ table.T, np.eye(10), atol=1e-5)
    prototypes = jnp.arange(640.0).reshape(10, 64)
    _, blocks = rule_and_blocks(embedding="prototype", prototypes=lambda: prototypes)
    np.testing.assert_array_equal(init_table(blocks[0]), prototypes)


def init_table(block):
    return block.units[0].init_with_output(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)[0].table


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network(models.mlp((4, 4))), "give model.name=noprop"),
        (Network(models.noprop(2, classes=100)), "has 100 classes, the data 10"),
    ],
)
def test_other_networks_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        rules.noprop_dt()(network, Task(10))


@pytest.mark.slow
def test_a_step_is_learned_from_noised_labels_and_the_chain_then_predicts():
    """On 64 digits: the blocks overfit one by one, and the prediction that joins them is right."""
    local, blocks = rule_and_blocks(dropout=0.0)
    batch = toy.digits(64)
    executor = fused(blocks, local.feed, optax.adam(3e-3))
    state = executor.init(jax.random.key(0), jax.tree.map(lambda x: x[:1], batch))
    before = executor.evaluate(state, batch)
    with jax.numpy_dtype_promotion("standard"):  # of optax's count of steps
        for _ in range(250):
            state, _ = executor.step(state, batch)
    after = executor.evaluate(state, batch)
    assert before[-1]["accuracy"] < 0.5
    assert after[-1]["accuracy"] > 0.9


@pytest.mark.parametrize("embedding", ["one_hot", "learned"])
def test_in_the_baseline_no_classes_share_an_embedding(embedding):
    """The output head says whose each embedding is, before it has learned anything."""
    units = models.noprop(2, width=0.1, embedding=embedding)
    network, local = rules.backprop()(Network(units, ()), Task(10))
    state = fused(make_blocks(network, local), local.feed, toy.OPTIMIZER).init(jax.random.key(0), toy.digits(1))
    params = state.blocks[0].variables["params"]
    table = params["unit_0"]["table"] if embedding == "learned" else jnp.eye(10)
    np.testing.assert_allclose(table @ params["unit_3"]["kernel"], np.eye(10), atol=1e-5)
    assert "head" not in params
