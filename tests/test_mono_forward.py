"""Mono-Forward against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Batch, Network, Task, make_blocks, models, rules
from jaxlocal.block import gradients, init
from tests import toy

KEY = jax.random.key(0)


@pytest.mark.parametrize("units", [models.mlp((6, 5), "tanh"), models.convnet((3, 2), (1, 2))])
def test_the_loss_and_the_update_of_every_projection(units):
    """Cross-entropy on ``a M^T``; its gradient is the error times all that the block puts out, which nothing pools."""
    batch = Batch(jax.random.normal(KEY, (8, 4, 4, 1)), jnp.arange(8) % 3)
    network, local = rules.mono_forward()(Network(units, (1,)), Task(3))
    carry, true = batch.input, np.eye(3)[np.asarray(batch.label)]
    for block in make_blocks(network, local):
        state, _ = init(block, KEY, carry, batch, toy.OPTIMIZER)
        gradient, carry, out = gradients(block, state.variables, carry, batch, KEY, dtype=jnp.float32)
        a = np.moveaxis(np.asarray(carry), -1, 1).reshape(8, -1)
        head = state.variables["params"]["head"]["dense"]
        assert head.keys() == {"kernel"}
        p = np.exp(a @ head["kernel"])
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(out.loss, -np.log((p * true).sum(1)).mean(), rtol=1e-4)
        np.testing.assert_allclose(gradient["head"]["dense"]["kernel"], a.T @ (p - true) / 8, rtol=1e-3, atol=1e-5)
        if carry.ndim == 2:
            kernel = gradient["unit_0"]["dense"]["bias"]
            delta = (p - true) @ np.asarray(head["kernel"]).T * (1 - a**2) / 8
            np.testing.assert_allclose(kernel, delta.sum(0), rtol=1e-3, atol=1e-5)


def test_positions_are_refused():
    with pytest.raises(ValueError, match="mono_forward gives one answer an example"):
        rules.mono_forward()(Network(models.mlp((4, 4)), (1,)), Task(3, each=True))
