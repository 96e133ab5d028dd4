"""Diagnostics against formulas written otherwise, and against values that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import confusion_matrix

from jaxlocal import diagnostics, rules
from jaxlocal.block import BlockState
from jaxlocal.heads import Classifier
from jaxlocal.losses import cross_entropy
from jaxlocal.variables import apply_module, pick
from tests import toy

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 7)).astype(np.float32), RNG.normal(size=(40, 5)).astype(np.float32)
DTYPE = jnp.float32


def linear_cka(x, y):
    return diagnostics.linear_cka(jnp.asarray(x), jnp.asarray(y))


def gradients(toy_: toy.Toy):
    return (
        f(toy_.blocks, toy_.feed, toy_.state, toy_.batch, dtype=DTYPE)
        for f in (diagnostics.local_gradients, diagnostics.end_to_end_gradients)
    )


def test_cka_is_the_formula_in_features():
    """The paper's first form, which never sees a matrix of examples by examples."""
    x, y = X - X.mean(0), Y - Y.mean(0)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert linear_cka(X, Y) == pytest.approx(expected, rel=1e-5)


def test_cka_by_hand():
    """Two examples are always alike; of three on a line the squares know nothing."""
    assert linear_cka(jnp.array([[0.0], [2.0]]), jnp.array([[1.0, 5.0], [3.0, 5.0]])) == pytest.approx(1)
    x = jnp.array([[-1.0], [0.0], [1.0]])
    assert linear_cka(x, x**2) == pytest.approx(0, abs=1e-6)
    # x = (-1, 0, 1) and y = (-1, -1, 2): squared correlation 9 / (2 * 6).
    assert linear_cka(x, jnp.array([[-1.0], [-1.0], [2.0]])) == pytest.approx(0.75)


def test_cka_does_not_see_rotation_scale_and_shift_but_sees_stretching():
    rotation, _ = np.linalg.qr(RNG.normal(size=(7, 7)))
    moved = (3 * X @ rotation + RNG.normal(size=7)).astype(np.float32)
    assert linear_cka(X, moved) == pytest.approx(1, abs=1e-5)
    assert linear_cka(Y, moved) == pytest.approx(float(linear_cka(Y, X)), abs=1e-5)
    assert linear_cka(X, X * np.array([9.0] + [1.0] * 6, np.float32)) < 0.9


def test_confusion_is_sklearns():
    labels, predictions = RNG.integers(0, 4, 100), RNG.integers(0, 4, 100)
    counts = diagnostics.confusion(jnp.asarray(labels), jnp.asarray(predictions), 5)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predictions, labels=range(5)))
    errors = diagnostics.errors_by_class(counts)
    assert errors[2] == pytest.approx(np.mean(predictions[labels == 2] != 2))
    assert np.isnan(errors[4])


def test_a_probe_is_ridge_regression():
    """Of n examples scikit-learn's penalty is n times ours."""
    labels = RNG.integers(0, 3, 40)
    probe = diagnostics.fit_probe(jnp.asarray(X), jnp.asarray(labels), 3, strength=0.05)
    scaled = (X - X.mean(0)) / X.std(0)
    ridge = Ridge(alpha=0.05 * 40).fit(scaled, np.eye(3)[labels])
    np.testing.assert_allclose(probe.weights, ridge.coef_.T, atol=1e-5)
    np.testing.assert_allclose(probe.bias, ridge.intercept_, atol=1e-5)
    accuracy = np.mean(np.argmax(ridge.predict(scaled), 1) == labels)
    assert diagnostics.probe_accuracy(probe, jnp.asarray(X), jnp.asarray(labels)) == pytest.approx(accuracy)


def test_a_probe_survives_a_feature_that_never_varies():
    x = jnp.asarray(np.concatenate([X[:, :1], np.ones((40, 1), np.float32)], 1))
    labels = (x[:, 0] > 0).astype(jnp.int32)
    assert diagnostics.probe_accuracy(diagnostics.fit_probe(x, labels, 2), x, labels) > 0.9


def test_images_are_pooled_for_a_probe():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(diagnostics.pooled(image), [[2.5, 4.5, 10.5, 12.5]])
    assert diagnostics.pooled(jnp.zeros((3, 2, 2, 5))).shape == (3, 20)
    assert diagnostics.pooled(jnp.zeros((3, 7, 4))).shape == (3, 28)


def test_a_cosine_by_hand():
    a = {"x": jnp.array([3.0, 0.0]), "y": jnp.array([[4.0]])}
    assert diagnostics.cosine(a, {"x": jnp.array([0.0, 9.0]), "y": jnp.array([[2.0]])}) == pytest.approx(
        8 / (5 * np.sqrt(85))
    )
    assert diagnostics.cosine(a, jax.tree.map(lambda x: -2 * x, a)) == pytest.approx(-1)
    assert np.isnan(diagnostics.cosine(a, jax.tree.map(jnp.zeros_like, a)))


@pytest.mark.slow
def test_backprop_points_where_backprop_does():
    made = toy.make(rules.backprop())
    local, whole = gradients(made)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), local, whole)
    cosines = diagnostics.alignment(made.blocks, made.feed, made.state, made.batch, dtype=DTYPE)
    np.testing.assert_allclose(cosines, [1.0], atol=1e-6)


@pytest.mark.slow
def test_the_end_to_end_gradient_is_that_of_the_plain_network():
    """Written out without blocks: units one after another, the last head, one loss."""
    made = toy.make(rules.dgl())
    _, whole = gradients(made)
    head = made.blocks[-1].objective

    def loss(params):
        x = made.batch.input
        for block, own, new in zip(made.blocks, made.state.blocks, params, strict=True):
            variables = {**own.variables, "params": {**own.variables["params"], **new}}
            x, _ = apply_module(block.units[0], pick(variables, "unit_0"), x, jax.random.key(0), train=True)
        return head.apply(pick(variables, "head"), x, made.batch, jax.random.key(0), train=True).loss

    params = tuple({"unit_0": own.variables["params"]["unit_0"]} for own in made.state.blocks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, jax.grad(loss)(params))


@pytest.mark.slow
def test_the_last_block_is_aligned_and_the_others_are_not():
    made = toy.make(rules.dgl())
    cosines = diagnostics.alignment(made.blocks, made.feed, made.state, made.batch, dtype=DTYPE)
    assert cosines[-1] == pytest.approx(1, abs=1e-5)
    assert np.all(np.abs(cosines[:-1]) < 0.95)


@pytest.mark.slow
def test_feedback_and_targets_are_held_against_the_true_gradient():
    """Isolation is lifted for it: DFA's, and that of an output layer; the local gradients stay what they are."""
    for rule in (rules.dfa(), rules.tpsgd(), rules.deep_supervision(rules.greedy())):
        made = toy.make(rule)
        _, whole = gradients(made)
        cosines = diagnostics.alignment(made.blocks, made.feed, made.state, made.batch, dtype=DTYPE)
        assert np.all(np.abs(cosines) < 0.99)  # none minimises the last exit's loss alone
        assert all(np.any(leaf) for leaf in jax.tree.leaves(whole))


def test_the_end_to_end_gradient_of_dfa_is_that_of_the_bare_units():
    made = toy.make(rules.dfa())
    _, (whole,) = gradients(made)
    (block,), (own,) = made.blocks, made.state.blocks
    head = Classifier(10)

    def loss(params):
        x = made.batch.input
        for j, unit in enumerate(block.units):
            variables = pick(
                pick({**own.variables, "params": {**own.variables["params"], **params}}, f"unit_{j}"), "unit"
            )
            x, _ = apply_module(unit.unit, variables, x, jax.random.key(0), train=True)
        logits, _ = apply_module(head, pick(pick(own.variables, "head"), "output"), x, jax.random.key(0), train=True)
        return jnp.mean(cross_entropy(logits, made.batch.label))

    params = {f"unit_{j}": own.variables["params"][f"unit_{j}"] for j in range(len(block.units))}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, jax.grad(loss)(params))


@pytest.mark.parametrize("rule", [rules.dgl(), rules.dfa(), rules.deep_supervision(rules.greedy())])
def test_what_is_observed_is_what_evaluation_sees(rule):
    """Exits are the executor's; a unit's output is its own, whatever else it hands on."""
    made = toy.make(rule)
    seen = diagnostics.observe(made.blocks, made.feed, made.state, made.batch, dtype=DTYPE)
    exits = made.executor.evaluate(made.state, made.batch)
    for logits, metrics in zip(seen.logits, exits, strict=True):
        assert jnp.mean(jnp.argmax(logits, -1) == made.batch.label) == pytest.approx(float(metrics["accuracy"]))
    assert [x.shape[-1] for x in seen.units] == [8, 8, 12, 12, 16]
    assert all(x.ndim == 4 for x in seen.units)


def test_units_inside_a_block_are_observed_one_by_one():
    """The same units with the same parameters, cut everywhere and not at all, put out the same."""
    cut, whole = toy.make(rules.greedy()), toy.make(rules.backprop())
    parts = {
        c: {f"unit_{i}": own.variables[c]["unit_0"] for i, own in enumerate(cut.state.blocks)}
        for c in ("params", "batch_stats")
    }
    parts["params"]["head"] = cut.state.blocks[-1].variables["params"]["head"]
    state = whole.state.replace(blocks=(BlockState(parts, ()),))
    a, b = (
        diagnostics.observe(made.blocks, made.feed, own, made.batch, dtype=DTYPE).units
        for made, own in ((cut, cut.state), (whole, state))
    )
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
