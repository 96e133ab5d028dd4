import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlocal.optimizers import cosine_with_warmup, sgd


@pytest.mark.parametrize(("epochs", "warmup"), [(400, 10), (20, 2), (7, 0), (1, 0)])
def test_schedule_is_the_papers(epochs, warmup):
    """Computed as in the paper's recipe, epoch by epoch from 1, with three steps an epoch."""
    schedule = cosine_with_warmup(0.8, epochs, 3, warmup_epochs=warmup, warmup_start=0.01)
    for epoch in range(1, epochs + 1):
        expected = 0.5 * 0.8 * (1 + math.cos(math.pi * epoch / epochs))
        if epoch <= warmup:
            expected = expected * (epoch - 1) / warmup + 0.01 * (warmup + 1 - epoch) / warmup
        for step in range(3 * (epoch - 1), 3 * epoch):
            np.testing.assert_allclose(schedule(jnp.asarray(step)), expected, rtol=1e-5, atol=1e-7)


def test_warm_up_starts_at_its_start():
    assert cosine_with_warmup(0.8, 400, 10)(jnp.asarray(0)) == pytest.approx(0.01)


def test_sgd_is_pytorchs():
    """PyTorch: g += wd w; buffer = m buffer + g; w -= lr (g + m buffer)."""
    lr, momentum, decay = 0.1, 0.9, 0.01
    optimizer = sgd(lr, momentum, True, decay)
    w, buffer = np.array([1.0, -2.0]), np.zeros(2)
    params = jnp.asarray(w)
    state = optimizer.init(params)
    for gradient in ([0.5, 0.1], [-0.2, 0.3], [0.0, 1.0]):
        g = np.array(gradient) + decay * w
        buffer = momentum * buffer + g
        w = w - lr * (g + momentum * buffer)
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, w, rtol=1e-6)
