import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import losses

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
LABELS = jnp.array([0, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_formula(smoothing):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    q = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    got = losses.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)
    np.testing.assert_allclose(got, -(q * np.log(p)).sum(1), rtol=1e-5)


def test_accuracy():
    assert losses.accuracy(LOGITS, LABELS) == 0.5


def test_ranks_are_checked():
    with pytest.raises(Exception, match=r"rank|Float"):
        losses.cross_entropy(LOGITS[0], LABELS)


RNG = np.random.default_rng(0)
CLASSES = jnp.array([0, 1, 0, 2, 3, 0])


def numpy_similarity(x):
    x = x - x.mean(1, keepdims=True)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def test_similarity_matching_is_the_distance_of_two_similarity_matrices():
    features = RNG.standard_normal((6, 5)).astype(np.float32)
    got = losses.similarity_matching(jnp.asarray(features), CLASSES, 4)
    expected = (numpy_similarity(features) - numpy_similarity(np.eye(4)[CLASSES])) ** 2
    np.testing.assert_allclose(got, expected.mean(1), rtol=1e-4)


def test_reconstruction_is_binary_cross_entropy():
    logits, pixels = RNG.standard_normal((2, 4, 4, 3)), RNG.uniform(size=(2, 4, 4, 3))
    p = 1 / (1 + np.exp(-logits))
    expected = -(pixels * np.log(p) + (1 - pixels) * np.log(1 - p)).mean((1, 2, 3))
    np.testing.assert_allclose(losses.reconstruction(jnp.asarray(logits), jnp.asarray(pixels)), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_contrast_is_the_formula(temperature):
    features = RNG.standard_normal((6, 5))
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    scores = np.exp(z @ z.T / temperature)
    expected = np.zeros(6)
    for i in range(6):
        others = [j for j in range(6) if j != i]
        positives = [j for j in others if CLASSES[j] == CLASSES[i]]
        terms = [-np.log(scores[i, j] / scores[i, others].sum()) for j in positives]
        expected[i] = np.mean(terms) if terms else 0.0
    got = losses.supervised_contrastive(jnp.asarray(features), CLASSES, temperature=temperature)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [lambda x: losses.similarity_matching(x, CLASSES, 4), lambda x: losses.supervised_contrastive(x, CLASSES)]
)
def test_features_without_spread_have_finite_gradients(loss):
    """A dead channel is constant, a dead block zero: neither may turn the update into NaN."""
    features = jnp.zeros((6, 5)).at[1].set(1.0)
    assert jnp.isfinite(jax.grad(lambda x: loss(x).sum())(features)).all()


def test_contrast_of_a_single_example_is_zero():
    one = jnp.ones((1, 3))
    assert losses.supervised_contrastive(one, CLASSES[:1]) == 0
    assert jnp.isfinite(jax.grad(lambda x: losses.supervised_contrastive(x, CLASSES[:1]).sum())(one)).all()
