import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlocal import Batch, Network, cut_evenly, fused, make_blocks, models
from jaxlocal.heads import Classifier
from jaxlocal.layers import conv
from jaxlocal.network import strides_of, with_strides, with_width
from jaxlocal.task import Task
from jaxlocal.variables import apply_module, init_module, size
from tests.test_contract import ROWS

NARROW = {  # every kind of unit at few channels
    "basic blocks": models.imagenet_resnet(18, width=8),
    "bottlenecks": models.imagenet_resnet(50, width=4),
    "grouped": models.resnext(50, groups=4, group_width=16, width=4),
    "vgg": models.vgg(13, width=4),
}


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


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_stands_between_a_dense_layer_and_leaky_relu(train):
    unit, x = models.mlp((5,), "leaky_relu", norm=True)[0], jax.random.normal(jax.random.key(0), (16, 8))
    _, variables = init_module(unit, jax.random.key(1), x)
    layer = variables["params"]["dense"]
    y = np.asarray(x) @ layer["kernel"] + layer["bias"]
    y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5) if train else y / np.sqrt(1 + 1e-5)
    found, _ = apply_module(unit, variables, x, jax.random.key(2), train=train)
    np.testing.assert_allclose(found, np.where(y > 0, y, 0.01 * y), rtol=1e-4, atol=1e-5)


def test_dropout_is_between_the_layers_of_an_mlp():
    first, second = models.mlp((64, 64), dropout=0.25)
    layer = {"params": {"dense": {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}}}
    for unit, train, values in ((first, True, {1}), (second, False, {1}), (second, True, {0, np.float32(4 / 3)})):
        y, _ = apply_module(unit, layer, jnp.ones((32, 64)), jax.random.key(0), train=train)
        assert set(np.unique(y)) == values
    assert jnp.mean(y == 0) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("options", [{"dropout": 1.0}, {"activation": "gelu"}, {"features": ()}])
def test_options_of_an_mlp_are_checked(options):
    with pytest.raises(ValueError, match=r"choose|give"):
        models.mlp(**options)


@cache
def outputs_and_size(units, shape):
    """The shape of each unit's output for one image, and the number of parameters."""

    def trace():
        outputs, params, x = [], [], jnp.zeros((1, *shape))
        for unit in units:
            x, variables = init_module(unit, jax.random.key(0), x)
            outputs.append(x)
            params.append(variables["params"])
        return outputs, params

    outputs, params = jax.eval_shape(trace)
    return [x.shape[1:] for x in outputs], size(params)


@pytest.mark.parametrize(
    ("network", "units", "features", "parameters"),
    [
        (models.imagenet_resnet(18), 9, 512, 11_689_512),
        (models.imagenet_resnet(34), 17, 512, 21_797_672),
        (models.imagenet_resnet(50), 17, 2048, 25_557_032),
        (models.imagenet_resnet(101), 34, 2048, 44_549_160),
        (models.imagenet_resnet(152), 51, 2048, 60_192_808),
        (models.resnext(50, 32, 4), 17, 2048, 25_028_904),
        (models.resnext(), 34, 2048, 88_791_336),
    ],
)
def test_imagenet_resnets_have_the_size_of_torchvisions(network, units, features, parameters):
    assert len(network) == units
    shapes, count = outputs_and_size(network, (224, 224, 3))
    assert shapes[0] == (56, 56, 64)
    assert shapes[-1] == (7, 7, features)
    assert count + 1000 * (features + 1) == parameters
    assert len(set(network)) == 8  # the stem; two kinds of block per stage, in the first one kind


@pytest.mark.parametrize(
    ("depth", "units", "parameters"),
    [(11, 8, 132_868_840), (13, 10, 133_053_736), (16, 13, 138_365_992), (19, 16, 143_678_248)],
)
def test_vgg_has_the_size_of_torchvisions(depth, units, parameters):
    """With batch norm, less the three dense layers and the convolutions' biases."""
    network = models.vgg(depth)
    assert len(network) == units
    shapes, count = outputs_and_size(network, (224, 224, 3))
    dense = sum((n + 1) * m for n, m in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)))
    assert count == parameters - dense - sum(unit.features for unit in network)
    assert shapes[-1] == (7, 7, 512)


def test_a_pool_of_vgg_begins_the_next_unit():
    """So that heads read what is not pooled yet, as in AugLocal's code; the last pool has no next unit."""
    sides = [shape[0] for shape in outputs_and_size(models.vgg(19), (32, 32, 3))[0]]
    assert sides == [32] * 2 + [16] * 2 + [8] * 4 + [4] * 4 + [2] * 3 + [1]


@pytest.mark.parametrize("network", NARROW.values(), ids=NARROW)
def test_strides_tell_the_resolution(network):
    assert math.prod(strides_of(unit) for unit in network) == 32
    for side in (32, 64, 75, 96):
        (h, w, _) = outputs_and_size(network, (side, side + 1, 3))[0][-1]
        rounded = math.floor if network is NARROW["vgg"] else math.ceil
        assert (h, w) == (rounded(side / 32), rounded((side + 1) / 32))


@pytest.mark.parametrize("network", NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("width", [0.1, 0.7, 3.0])
def test_units_at_other_widths_and_strides(network, width):
    for unit in dict.fromkeys(network):
        for strides in (1, 2):
            scaled = with_strides(with_width(unit, width), strides)
            (shape,), _ = outputs_and_size((scaled,), (12, 12, 7))
            assert shape == (12 // strides, 12 // strides, max(1, int(unit.features * width)))


def test_initialisation_of_a_grouped_convolution():
    """N(0, 2 / (9 out)), out being the channels of all groups, as PyTorch's fan-out counts them."""
    variables = conv(64, 3, groups=4, name="conv").init(jax.random.key(0), jnp.zeros((1, 1, 1, 64)))
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (3, 3, 16, 64)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)


@pytest.mark.parametrize("rule", [name for name in ROWS if "noprop" not in name and name not in ("shared", "lopt")])
@pytest.mark.parametrize(
    ("name", "side"), [("basic blocks", 64), ("bottlenecks", 32), ("grouped", 75), ("vgg", 32), ("vgg", 75)]
)
def test_every_rule_trains_every_network(name, rule, side):
    units = tuple(dict.fromkeys(NARROW[name]))  # one unit of each kind
    network, local_rule = ROWS[rule][0](Network(units, cut_evenly(units, 4)), Task(7))
    executor = fused(make_blocks(network, local_rule), local_rule.feed, optax.sgd(0.1))
    image = jnp.zeros((4, side, side, 3))
    batch = Batch(image, jnp.zeros(4, jnp.int32), image)
    before = jax.eval_shape(executor.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(executor.step, before, batch)
    assert jax.tree.map(jnp.shape, before.blocks) == jax.tree.map(jnp.shape, after.blocks)
    assert len(metrics) == len(network.cuts) + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.resnet(33), r"6n \+ 2 layers .* not 33"),
        (lambda: models.resnet(2), "not 2"),
        (lambda: models.resnet(32, 0), "width 0"),
        (lambda: models.mlp(()), "at least one layer"),
        (lambda: models.convnet((8, 8), (1,)), "one positive number of each per unit"),
        (lambda: models.convnet((8, 0), (1, 1)), "one positive number"),
        (lambda: models.imagenet_resnet(32), "18, 34, 50, 101 or 152 layers, not 32"),
        (lambda: models.imagenet_resnet(18, 0), "width 0"),
        (lambda: models.resnext(34), "50, 101 or 152 layers, not 34"),
        (lambda: models.resnext(50, 0), "0 groups of 8 channels"),
        (lambda: models.vgg(12), "11, 13, 16 or 19 layers, not 12"),
        (lambda: models.vgg(11, 0), "width 0"),
    ],
)
def test_impossible_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
