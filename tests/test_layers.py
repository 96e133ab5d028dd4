import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal.layers import adaptive_average_pool, bilinear_resize, flatten, global_average_pool, safe_sqrt


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


@pytest.mark.parametrize(("h", "w", "height", "width"), [(4, 4, 8, 8), (1, 1, 5, 3), (3, 5, 7, 9), (8, 8, 8, 8)])
def test_bilinear_resize_interpolates_between_the_corners(h, w, height, width):
    """A plane stays a plane, with its corners where they were."""
    rows, columns = np.linspace(-1, 1, h) if h > 1 else [0.5], np.linspace(2, 5, w) if w > 1 else [0.25]
    plane = np.add.outer(rows, columns)[None, :, :, None].astype(np.float32)
    got = bilinear_resize(jnp.asarray(plane), height, width)
    rows, columns = np.linspace(rows[0], rows[-1], height), np.linspace(columns[0], columns[-1], width)
    np.testing.assert_allclose(got[0, :, :, 0], np.add.outer(rows, columns), rtol=1e-5, atol=1e-6)


def test_flatten_goes_channel_by_channel():
    x = jnp.arange(12.0).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(flatten(x)[0, :4], x[0, :, :, 0].ravel())


def test_safe_sqrt_has_no_slope_at_zero():
    np.testing.assert_allclose(safe_sqrt(jnp.array([0.0, 4.0])), [0.0, 2.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(safe_sqrt))(jnp.array([0.0, 4.0])), [0.0, 0.25])
