"""PredSim, and each of its two losses alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Batch, Network, Task, make_blocks, models, rules
from jaxlocal.block import gradients, init
from tests import toy

BATCH = Batch(jax.random.normal(jax.random.key(0), (8, 4, 4, 1)), jnp.arange(8) % 3)
KEY = jax.random.key(1)


def last_block(**options):
    """Variables, gradient and objective's report of the last of two dense blocks."""
    network, local = rules.predsim(**options)(Network(models.mlp((6, 5)), (1,)), Task(3))
    first, last = make_blocks(network, local)
    _, carry = init(first, KEY, BATCH.input, BATCH, toy.OPTIMIZER)
    state, _ = init(last, KEY, carry, BATCH, toy.OPTIMIZER)
    gradient, output, out = gradients(last, state.variables, carry, BATCH, KEY, dtype=jnp.float32)
    return state.variables, gradient, output, out


def similarity(x):
    x = np.asarray(x) - np.asarray(x).mean(1, keepdims=True)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def test_the_similarity_of_dense_features():
    variables, _, output, out = last_block(similarity=1.0, prediction=0.0, last=True)
    kernel = variables["params"]["head"]["similarity"]["dense"]["kernel"]
    expected = (similarity(np.asarray(output) @ kernel) - similarity(np.eye(3)[np.asarray(BATCH.label)])) ** 2
    np.testing.assert_allclose(out.metrics["similarity"], expected.mean(), rtol=1e-4)
    np.testing.assert_allclose(out.loss, expected.mean() + float(out.metrics["output"]), rtol=1e-5)


def test_the_classifier_behind_a_last_block_with_local_losses_learns_by_itself():
    """Of prediction heads at zero no gradient reaches the layer, and of the classifier's loss none does either."""
    _, gradient, _, out = last_block(similarity=0.0, prediction=1.0, zero=True, last=True)
    assert not gradient["unit_0"]["dense"]["kernel"].any()
    assert gradient["head"]["output"]["dense"]["kernel"].any()
    assert gradient["head"]["prediction"]["dense"]["kernel"].any()
    assert out.metrics["accuracy"] == out.metrics["output/accuracy"]
    _, gradient, _, _ = last_block(zero=True)
    assert gradient["unit_0"]["dense"]["kernel"].any()
    assert gradient["head"].keys() == {"dense"}


@pytest.mark.parametrize(
    ("rule", "terms"),
    [
        (rules.predsim(), {"similarity", "prediction"}),
        (rules.predsim(similarity=0.0, prediction=1.0), {"prediction"}),
        (rules.predsim(similarity=1.0, prediction=0.0), {"similarity"}),
    ],
)
def test_terms_and_heads(rule, terms):
    t = toy.make(rule)
    assert t.state.blocks[0].variables["params"]["head"].keys() == terms
    _, metrics = t.executor.step(t.state, t.batch)
    for block in metrics[:-1]:
        assert ("accuracy" in block) == ("prediction" in terms)
        weights = {"similarity": 0.99, "prediction": 0.01} if len(terms) == 2 else dict.fromkeys(terms, 1.0)
        assert float(block["loss"]) == pytest.approx(
            sum(weights[name] * float(block[name]) for name in terms), rel=1e-4
        )
