import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal.layers import adaptive_average_pool, global_average_pool


@pytest.mark.parametrize(("h", "w", "size"), [(8, 8, 2), (7, 7, 2), (5, 9, 3), (1, 1, 1), (6, 4, 4)])
def test_adaptive_average_pool_averages_its_bins(h, w, size):
    x = np.random.default_rng(0).standard_normal((2, h, w, 3)).astype(np.float32)
    got = adaptive_average_pool(jnp.asarray(x), size)
    for p in range(size):
        for q in range(size):
            rows = slice(p * h // size, -(-(p + 1) * h // size))
            columns = slice(q * w // size, -(-(q + 1) * w // size))
            np.testing.assert_allclose(got[:, p, q], x[:, rows, columns].mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_global_average_pool_leaves_features_alone():
    features = jnp.arange(6.0).reshape(2, 3)
    assert (global_average_pool(features) == features).all()
