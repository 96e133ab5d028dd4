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
