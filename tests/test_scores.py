"""Scores judged piece by piece: the numbers of whole ones, without their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import losses, scores
from jaxlocal.scores import Scores, judged

B, T, F, K = 2, 12, 5, 17


@pytest.fixture
def given():
    x, table, labels = (jax.random.fold_in(jax.random.key(0), i) for i in range(3))
    return (
        jax.random.normal(x, (B, T, F)),
        jax.random.normal(table, (F, K)),
        jax.random.randint(labels, (B, T), 0, K),
    )


def value(given, weights=(1.0, 3.0)):
    x, table, labels = given
    values, accuracy, logits = judged(Scores(x, table), labels, losses.cross_entropy)
    return jnp.sum(values * jnp.array(weights)), (values, accuracy, logits)


@pytest.mark.parametrize("held", [B * 4 * K, B * 5 * K, 1], ids=["three pieces", "no divisor", "one position each"])
def test_pieces_give_the_numbers_of_the_whole(given, held, monkeypatch):
    """Losses, accuracy, and the gradients of features and table, whatever weights the examples have."""
    (_, expected), by = jax.value_and_grad(lambda x, w: value((x, w, given[2])), (0, 1), has_aux=True)(*given[:2])
    monkeypatch.setattr(scores, "HELD", held)
    (_, found), by_pieces = jax.value_and_grad(lambda x, w: value((x, w, given[2])), (0, 1), has_aux=True)(*given[:2])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), (found, by_pieces), (expected, by)
    )


def test_the_gradient_of_the_table_is_accumulated_in_float32(given, monkeypatch):
    """In bfloat16 a sum of many pieces would lose what is small."""
    monkeypatch.setattr(scores, "HELD", 1)
    x, table, labels = given
    exact = jax.grad(lambda w: value((x, w, labels))[0])(table)
    found = jax.grad(lambda w: value((x.astype(jnp.bfloat16), w, labels))[0])(table.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02 * float(jnp.abs(exact).max()))


def test_a_label_further_ahead(given, monkeypatch):
    """Position i is compared with label i + 2, in pieces too; the last two positions with none; of one, nothing is."""
    x, table, labels = given
    expected = losses.cross_entropy(x[:, :-2] @ table, labels[:, 2:])
    for held in (scores.HELD, 1):
        monkeypatch.setattr(scores, "HELD", held)
        values, _, logits = judged(Scores(x, table), labels, losses.cross_entropy, ahead=2)
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        assert logits.shape == (B, T - 2, K)
    np.testing.assert_allclose(judged(x @ table, labels, losses.cross_entropy, ahead=2)[0], expected, rtol=1e-6)
    for scores_ in (Scores(x[:, :1], table), x[:, :1] @ table):
        value, accuracy, logits = judged(scores_, labels[:, :1], losses.cross_entropy, ahead=2)
        assert logits.shape == (B, 0, K)
        assert jnp.isnan(value).all()
        assert jnp.isnan(accuracy)


def test_a_compiled_step_never_holds_all_scores():
    """Neither the loss nor its gradient: 64 positions of 2^18 tokens are 64 MiB in float32, at most 64 are held."""
    x = jax.ShapeDtypeStruct((4, 256, 8), jnp.float32)
    table = jax.ShapeDtypeStruct((8, 2**18), jnp.float32)
    labels = jax.ShapeDtypeStruct((4, 256), jnp.int32)

    def step(x, table, labels):
        return jnp.mean(judged(Scores(x, table), labels, losses.cross_entropy)[0])

    whole = 4 * 256 * 2**18 * 4
    stats = jax.jit(jax.grad(step, (0, 1))).lower(x, table, labels).compile().memory_analysis()
    assert stats.temp_size_in_bytes < whole / 4
