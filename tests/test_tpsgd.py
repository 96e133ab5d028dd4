"""tpSGD, DRTP and DFA against their formulas, written out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Batch, Network, Task, losses, make_blocks, models, rules
from jaxlocal.block import gradients, init
from jaxlocal.models import DenseUnit, RecurrentUnit
from jaxlocal.network import cut_everywhere
from jaxlocal.rules.tpsgd import DISTANCES
from tests import toy

CLASSES = 3


def batch_of(shape, b=8):
    """A batch whose size is a power of two, so that its mean is exact."""
    image = jax.random.normal(jax.random.key(1), (b, *shape))
    return Batch(image, jax.random.randint(jax.random.key(2), (b,), 0, CLASSES))


def block_gradients(units, rule, batch, cuts=None, loss=losses.cross_entropy):
    """The gradient of each block, its variables and its input."""
    network, local = rule(Network(tuple(units), cut_everywhere(units) if cuts is None else cuts), Task(CLASSES, loss))
    carry = local.feed(0, None, batch, jax.random.key(0), train=True)
    found = []
    for i, block in enumerate(make_blocks(network, local)):
        state, _ = init(block, jax.random.key(i), carry, batch, toy.OPTIMIZER)
        gradient, output, out = gradients(
            block, state.variables, carry, batch, jax.random.key(3), dtype=jnp.float32, axis=None
        )
        found.append((gradient, state.variables, carry, output, out))
        carry = output
    return found


def projections(variables, name=()):
    tree = variables["fixed"]["head"]
    for key in name:
        tree = tree[key]
    return tree["projection"]


def output_gradient(rule, units, batch):
    """The gradient of the first block's loss with respect to its output, for each example."""
    network, local = rule(Network(tuple(units), cut_everywhere(units)), Task(CLASSES))
    block = make_blocks(network, local)[0]
    state, output = init(block, jax.random.key(0), batch.input, batch, toy.OPTIMIZER)
    variables = {c: tree["head"] for c, tree in state.variables.items() if "head" in tree}

    def loss(h):
        return block.objective.apply(variables, h, batch, jax.random.key(0), train=True).loss

    return len(batch.label) * jax.grad(loss)(output), projections(state.variables)


@pytest.mark.parametrize("units", [models.mlp((16, 5)), models.lenet((4,), (5,)), models.rnn((6, 5))])
def test_the_hidden_gradient_of_drtp_is_the_projected_label(units):
    batch = batch_of((4, 4, 1))
    found, matrix = output_gradient(rules.drtp(), units, batch)
    onehot = jax.nn.one_hot(batch.label, CLASSES)
    expected = jnp.tensordot(onehot, matrix, 1, precision=jax.lax.Precision.HIGHEST)
    if found.ndim == 3:  # of a sequence, the last step has a gradient
        np.testing.assert_array_equal(found[:, :-1], 0)
        found = found[:, -1]
    np.testing.assert_array_equal(found, expected)


def test_projections_are_fixed_and_those_of_the_paper():
    """Kaiming's uniform distribution for DRTP; no gradient is taken for them."""
    batch = batch_of((4, 4, 1))
    (gradient, variables, *_), _ = block_gradients(models.mlp((5000, 4)), rules.drtp(), batch)
    matrix = np.asarray(projections(variables))
    assert np.abs(matrix).max() == pytest.approx(np.sqrt(6 / 5000), rel=1e-3)
    assert matrix.std() == pytest.approx(np.sqrt(2 / 5000), rel=0.02)
    assert gradient.keys() == {"unit_0"}


@pytest.mark.parametrize(("distance", "slope"), [("squared", lambda d: d), ("absolute", np.sign)])
def test_the_update_of_a_dense_layer(distance, slope):
    """``(y_i - P_i y) * sigma'(z_i)`` times the input, or its sign."""
    batch = batch_of((2, 3, 1), b=4)
    rule = rules.tpsgd(distance)
    units = (DenseUnit(5, "tanh"), DenseUnit(4, "tanh"))
    for gradient, variables, carry, *_ in block_gradients(units, rule, batch):
        params = jax.tree.map(np.asarray, variables["params"]["unit_0"]["dense"])
        names = ("target",) if "target" in variables["fixed"]["head"] else ()
        x = np.asarray(carry).reshape(4, -1)
        y = np.tanh(x @ params["kernel"] + params["bias"])
        target = np.asarray(projections(variables, names))[np.asarray(batch.label)]
        delta = slope(y - target) * (1 - y**2)
        np.testing.assert_allclose(gradient["unit_0"]["dense"]["kernel"], x.T @ delta / 4, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient["unit_0"]["dense"]["bias"], delta.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_the_update_of_a_recurrent_layer(last):
    """The last state is compared with the target, and the difference goes back through the layer's own time steps."""
    batch = batch_of((5, 3, 1), b=4)
    units = (RecurrentUnit(6, last=last), DenseUnit(4))
    gradient, variables, *_ = block_gradients(units, rules.tpsgd(), batch)[0]
    cell = jax.tree.map(np.asarray, variables["params"]["unit_0"]["cell"])
    x, states = np.asarray(batch.input)[..., 0], [np.zeros((4, 6))]
    for t in range(5):
        states.append(np.tanh(x[:, t] @ cell["i"]["kernel"] + cell["i"]["bias"] + states[-1] @ cell["h"]["kernel"]))
    back = states[-1] - np.asarray(projections(variables))[np.asarray(batch.label)]
    by_input, by_state = np.zeros((3, 6)), np.zeros((6, 6))
    for t in reversed(range(5)):
        delta = back * (1 - states[t + 1] ** 2)
        by_input, by_state = by_input + x[:, t].T @ delta / 4, by_state + states[t].T @ delta / 4
        back = delta @ cell["h"]["kernel"].T
    np.testing.assert_allclose(gradient["unit_0"]["cell"]["i"]["kernel"], by_input, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient["unit_0"]["cell"]["h"]["kernel"], by_state, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ("squared", lambda y, t: ((y - t) ** 2).sum(-1) / 2),
        ("absolute", lambda y, t: np.abs(y - t).sum(-1)),
        ("inner_product", lambda y, t: (y * t).sum(-1)),
    ],
)
def test_distances(distance, expected):
    y, t = (np.asarray(jax.random.normal(jax.random.key(i), (4, 7))) for i in range(2))
    found = DISTANCES[distance](jnp.asarray(y), jnp.asarray(t))
    np.testing.assert_allclose(found, expected(y, t), rtol=1e-5)


def test_the_logistic_distance_pulls_by_the_difference_of_sigmoids():
    y, t = (jax.random.normal(jax.random.key(i), (4, 3, 7)) for i in range(2))
    gradient = jax.grad(lambda y: losses.logistic(y, t).sum())(y)
    np.testing.assert_allclose(gradient, (jax.nn.sigmoid(y) - jax.nn.sigmoid(t)) / 3, rtol=1e-4, atol=1e-6)


def test_the_output_loss_does_not_reach_the_last_layer():
    """Its classifier learns by the loss; the layer learns by its target alone."""
    batch = batch_of((4, 4, 1))
    one, other = (
        block_gradients(models.mlp((6, 5)), rules.tpsgd(), batch, loss=loss)[-1][0]
        for loss in (losses.cross_entropy, functools.partial(losses.cross_entropy, label_smoothing=0.5))
    )
    np.testing.assert_array_equal(one["unit_0"]["dense"]["kernel"], other["unit_0"]["dense"]["kernel"])
    assert (one["head"]["output"]["dense"]["kernel"] != other["head"]["output"]["dense"]["kernel"]).any()


def test_a_layer_predicts_the_class_of_the_nearest_target():
    batch = batch_of((4, 4, 1))
    *_, output, out = block_gradients(models.mlp((16, 5)), rules.tpsgd(), batch)[0]
    assert out.logits.shape == (8, CLASSES)
    _, local = rules.tpsgd()(Network(models.mlp((16, 5)), (1,)), Task(CLASSES))
    objective = local.objectives[0]
    variables = objective.init(jax.random.key(0), output, batch)
    exactly = variables["fixed"]["projection"][batch.label]
    found = objective.apply(variables, exactly, batch, jax.random.key(0), train=False)
    assert found.metrics["accuracy"] == 1
    assert found.loss == 0


@pytest.mark.parametrize("sign", [False, True])
def test_dfa_projects_the_error_to_every_unit(sign):
    batch = batch_of((2, 3, 1), b=4)
    units = (DenseUnit(5, "tanh"), DenseUnit(4, "tanh"))
    ((gradient, variables, _, outputs, out),) = block_gradients(units, rules.dfa(sign), batch)
    head = jax.tree.map(np.asarray, variables["params"]["head"]["output"]["dense"])
    logits = np.asarray(outputs[-1]) @ head["kernel"] + head["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = p - np.eye(CLASSES)[np.asarray(batch.label)]
    np.testing.assert_allclose(out.loss, -np.log(p[np.arange(4), np.asarray(batch.label)]).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient["head"]["output"]["dense"]["kernel"], np.asarray(outputs[-1]).T @ error / 4, rtol=1e-4, atol=1e-6
    )
    below = (np.asarray(batch.input).reshape(4, -1), np.asarray(outputs[0]))
    for i, (x, y) in enumerate(zip(below, map(np.asarray, outputs), strict=True)):
        matrix = np.asarray(variables["fixed"]["head"]["feedback"][str(i)])
        delta = ((np.sign(error) if sign else error) @ matrix) * (1 - y**2)
        found = gradient[f"unit_{i}"]["unit"]["dense"]["kernel"]
        np.testing.assert_allclose(found, x.T @ delta / 4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"distance": "cubed"}, {"bound": 0.0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="tpsgd: "):
        rules.tpsgd(**options)
