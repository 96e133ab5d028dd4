import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal.layers import (
    BatchNorm,
    adaptive_average_pool,
    batch_norm_over,
    bilinear_resize,
    conv,
    dense,
    flatten,
    global_average_pool,
    safe_sqrt,
    spread,
)


class Layers(nn.Module):
    """A convolution and a dense layer, each with a bias."""

    @nn.compact
    def __call__(self, x):
        pixels = conv(3, 3, use_bias=True, name="conv")(x)
        return pixels, dense(x.reshape(-1, x.shape[-1]), 3, name="dense")


def test_gradients_of_biases_are_summed_in_float32():
    """Of a sum of all outputs they count them, which bfloat16 gives up at 256."""
    x = jnp.ones((2, 32, 32, 1), jnp.bfloat16)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), Layers().init(jax.random.key(0), jnp.ones(x.shape)))
    gradient = jax.grad(lambda p: sum(jnp.sum(y, dtype=jnp.float32) for y in Layers().apply(p, x)))(params)["params"]
    for layer in ("conv", "dense"):
        assert gradient[layer]["bias"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(gradient[layer]["bias"].astype(jnp.float32), 2048)


def test_biased_layers_are_drawn_and_computed_as_flax_does():
    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x):
            he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
            uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            pixels = nn.Conv(3, (3, 3), padding=1, kernel_init=he, name="conv")(x)
            bias = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1)  # noqa: E731
            return pixels, nn.Dense(3, kernel_init=uniform, bias_init=bias, name="dense")(x.reshape(-1, x.shape[-1]))

    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 1))
    ours, theirs = (layers.init_with_output(jax.random.key(0), x) for layers in (Layers(), Flax()))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_spread_keeps_the_dtype_and_sums_in_float32(dtype):
    like = jnp.zeros((1000, 3), dtype)
    y, back = jax.vjp(lambda x: spread(x, like), jnp.arange(3, dtype=dtype))
    np.testing.assert_array_equal(y.astype(jnp.float32), np.broadcast_to([0, 1, 2], (1000, 3)))
    (gradient,) = back(jnp.ones_like(y))
    assert y.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, jnp.full(3, 1000, dtype))


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return BatchNorm(False, name="norm")(x)


def normalised(x, axis=None):
    """What batch norm makes of ``x``, its statistics, and the gradient of a sum of cubes."""

    def cubes(x):
        with batch_norm_over(axis):
            y, mutated = Norm().apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(y**3), (y, mutated["batch_stats"]["norm"])

    variables = Norm().init(jax.random.key(0), jnp.zeros((1, x.shape[-1])))
    gradient, (y, statistics) = jax.grad(cubes, has_aux=True)(x)
    return y, gradient, statistics


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("ratio", [0.0, 3000.0, -3000.0])
def test_batch_norm_keeps_its_precision_far_from_zero(devices, ratio):
    """In float32, against float64, of inputs that are the same numbers; on one device, and on four that agree."""
    x = np.random.default_rng(0).normal(ratio, 1, (64, 16, 16, 2)).astype(np.float32)
    if devices == 1:
        y, gradient, statistics = normalised(jnp.asarray(x))
    else:
        parts = jnp.asarray(x).reshape(devices, -1, *x.shape[1:])
        y, gradient, statistics = jax.pmap(lambda part: normalised(part, "data"), "data")(parts)
        y, gradient = y.reshape(x.shape), gradient.reshape(x.shape)
        statistics = jax.tree.map(lambda s: s[0], statistics)
    wide = x.astype(np.float64)
    mean, variance = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    expected = (wide - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-3)
    np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    slope = 3 * expected**2
    centred = slope - slope.mean((0, 1, 2)) - expected * (slope * expected).mean((0, 1, 2))
    np.testing.assert_allclose(gradient, centred / np.sqrt(variance + 1e-5), atol=2e-2)


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
