"""Deep supervision: the heads of a rule, with the gradients not cut."""

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxlocal import block, rules
from jaxlocal.variables import apply_module, pick
from tests import toy


def test_the_gradient_is_that_of_the_sum_of_all_losses():
    t = toy.make(rules.deep_supervision(rules.greedy(), 0.5))
    cut = toy.make(rules.greedy())
    variables = t.state.blocks[0].variables

    def textbook(params):
        """Units one after the other, a dense classifier on the mean of each one's output."""
        x, total = t.batch.input, 0.0
        for i, unit in enumerate(cut.network.units):
            own = {"params": params[f"unit_{i}"]["unit"], "batch_stats": variables["batch_stats"][f"unit_{i}"]["unit"]}
            x, _ = apply_module(unit, own, x, jax.random.key(0), train=True)
            name = "output" if i == 4 else f"exit_{i + 1}"
            dense = params["head"][name]["inner"]["dense"]
            logits = x.mean((1, 2)) @ dense["kernel"] + dense["bias"]
            loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), t.batch.label[:, None], 1).mean()
            total += loss * (1.0 if i == 4 else 0.5)
        return total

    gradient, _, out = block.gradients(
        t.blocks[0], variables, t.batch.input, t.batch, jax.random.key(0), dtype=jnp.float32
    )
    expected_loss, expected = jax.value_and_grad(textbook)(variables["params"])
    chex.assert_trees_all_close(out.loss, expected_loss, rtol=1e-5)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_the_exit_is_the_networks_output():
    t = toy.make(rules.deep_supervision(rules.dgl()))
    _, metrics = block.evaluate(
        t.blocks[0], t.state.blocks[0].variables, t.batch.input, t.batch, jax.random.key(0), dtype=jnp.float32
    )
    assert metrics["accuracy"] == metrics["output/accuracy"]
    assert sum(name.startswith("exit_") and name.endswith("/accuracy") for name in metrics) == 4
    assert pick(t.state.blocks[0].variables, "head")["params"].keys() == {
        "output", "exit_1", "exit_2", "exit_3", "exit_4"
    }  # fmt: skip


def test_bad_weight():
    with pytest.raises(ValueError, match=r"weight -1\.0 given"):
        rules.deep_supervision(rules.dgl(), -1.0)
