"""Heads: what they put out, and how their width scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal.heads import ConvDense, ConvMlp, ConvStd, Decoder, PooledClassifier
from jaxlocal.variables import size

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 6))


def parameters(head, x=X):
    return head.init(jax.random.key(1), x, train=False)["params"]


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (ConvMlp(10), (2, 10)),
        (ConvDense(10, strides=2), (2, 10)),
        (Decoder((16, 12, 3)), (2, 16, 12, 3)),
        (ConvStd(), (2, 6)),
        (PooledClassifier(10), (2, 10)),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_images_and_dense_features(head, shape, flat):
    x = X[:, 0, 0] if flat else X
    y, _ = head.init_with_output(jax.random.key(1), x, train=False)
    assert y.shape == shape


@pytest.mark.parametrize(
    "make", [lambda w: ConvMlp(10, w), lambda w: ConvDense(10, width=w), lambda w: Decoder((8, 8, 3), w), ConvStd]
)
def test_wider_heads_have_more_parameters(make):
    assert size(parameters(make(0.5))) < size(parameters(make(1.0))) < size(parameters(make(2.0)))


@pytest.mark.parametrize(("most", "shapes"), [(None, [6, 6, 6, 24, 24]), (16, [6, 6, 6, 16, 16]), (4, [4] * 5)])
def test_hidden_layers_of_dgl_have_at_most_so_many_features(most, shapes):
    params = parameters(ConvMlp(10, most=most))
    layers = ("conv1", "conv2", "conv3", "dense1", "dense2")
    assert [params[layer]["kernel"].shape[-1] for layer in layers] == shapes


@pytest.mark.parametrize(
    ("side", "channels", "left"),
    [(32, 16, (4, 8)), (16, 32, (4, 4)), (8, 64, (2, 4)), (96, 16, (3, 6)), (48, 32, (3, 3)), (24, 64, (2, 3))],
)
def test_the_pool_of_predsim_leaves_at_most_512_numbers(side, channels, left):
    """The grids of the authors' code at 32 and 96 pixels."""
    kernel = parameters(PooledClassifier(10), jnp.zeros((1, side, side, channels)))["dense"]["kernel"]
    assert kernel.shape == (np.prod(left) * channels, 10)


def test_conv_std_is_the_unbiased_deviation_over_space():
    head = ConvStd()
    variables = head.init(jax.random.key(1), X, train=False)
    y = jax.lax.conv_general_dilated(
        X, variables["params"]["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = head.apply(variables, X, train=False)
    np.testing.assert_allclose(got, np.std(np.asarray(y).reshape(2, -1, 6), axis=1, ddof=1), rtol=1e-4)


def test_dense_features_go_through_a_dense_layer_without_bias():
    head, x = ConvStd(width=0.5), X[:, 0, 0]
    variables = head.init(jax.random.key(1), x, train=False)
    kernel = np.asarray(variables["params"]["dense"]["kernel"])
    assert jax.tree.map(jnp.shape, variables) == {"params": {"dense": {"kernel": (6, 3)}}}
    np.testing.assert_allclose(head.apply(variables, x, train=True), np.asarray(x) @ kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x", [X, X[:, 0, 0]])
def test_a_prediction_head_may_start_at_zero(x):
    params = parameters(PooledClassifier(10, zero=True), x)["dense"]
    assert not params["kernel"].any()
    assert params["bias"].all()  # as in the authors' code


def test_the_pool_of_predsim_sums_in_float32():
    """Windows of 1024 ones: in bfloat16 their sum would stop at 256."""
    head, x = PooledClassifier(2, features=1), jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    params = {"dense": {"kernel": jnp.eye(1, 2, dtype=jnp.bfloat16), "bias": jnp.zeros(2, jnp.bfloat16)}}
    y = head.apply({"params": params}, x, train=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), [[1, 0]])
