import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import models
from jaxlocal.heads import Classifier
from jaxlocal.variables import init_module, size


def through(units, shape):
    x, variables = jnp.zeros((2, *shape)), []
    for i, unit in enumerate(units):
        x, v = init_module(unit, jax.random.key(i), x)
        variables.append(v)
    return x, variables


@pytest.mark.parametrize(
    ("depth", "units", "millions"), [(20, 10, 0.27), (32, 16, 0.46), (44, 22, 0.66), (56, 28, 0.85), (110, 55, 1.7)]
)
def test_resnet_has_the_size_of_table_6_of_he_et_al(depth, units, millions):
    network = models.resnet(depth)
    assert len(network) == units
    shapes = jax.eval_shape(lambda: through(network, (32, 32, 3)))
    features, variables = shapes
    assert features.shape == (2, 8, 8, 64)
    head = jax.eval_shape(lambda: init_module(Classifier(10), jax.random.key(0), jnp.zeros((2, 64)))[1])
    total = size([v["params"] for v in variables]) + size(head["params"])
    assert round(total / 1e6, 2 if depth < 110 else 1) == pytest.approx(millions, abs=0.011)


def test_initialisation_of_the_paper():
    """Convolutions N(0, 2 / (9 out)); dense layers uniform within 1 / sqrt(in), bias too; batch norm 1 and 0."""
    _, variables = init_module(models.BasicBlock(64), jax.random.key(0), jnp.zeros((1, 8, 8, 32)))
    params = variables["params"]
    kernel = np.asarray(params["conv1"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert kernel.mean() == pytest.approx(0, abs=0.002)
    assert (params["bn1"]["scale"] == 1).all()
    assert (params["bn1"]["bias"] == 0).all()
    _, variables = init_module(Classifier(500), jax.random.key(0), jnp.zeros((1, 64)))
    for name in ("kernel", "bias"):
        x = np.asarray(variables["params"]["dense"][name])
        assert np.abs(x).max() == pytest.approx(1 / 8, rel=0.02)
        assert x.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)


def test_convnet_and_mlp_shapes():
    x, _ = through(models.convnet((4, 8, 8), (1, 2, 3)), (12, 12, 1))
    assert x.shape == (2, 2, 2, 8)
    x, _ = through(models.mlp((7, 5)), (4, 4, 1))
    assert x.shape == (2, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.resnet(33), r"6n \+ 2 layers .* not 33"),
        (lambda: models.resnet(2), "not 2"),
        (lambda: models.resnet(32, 0), "width 0"),
        (lambda: models.mlp(()), "at least one layer"),
        (lambda: models.convnet((8, 8), (1,)), "one positive number of each per unit"),
        (lambda: models.convnet((8, 0), (1, 1)), "one positive number"),
    ],
)
def test_impossible_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
