"""LoPT: what blocks below the last one reconstruct, from what, and what reaches them."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlocal import Batch, Network, Task, cut_everywhere, fused, make_blocks, models, rules
from jaxlocal.block import gradients, run
from jaxlocal.rules.lopt import Keeping, Kept, Reconstruction
from jaxlocal.variables import init_module
from tests import toy
from tests.test_gpt import OPTIONS, TASK, batch_of, made

KEY = jax.random.key(0)


def decoded(head, x):
    """The authors' decoder: norm, a quarter of the features, GELU, as many as before."""
    x = nn.LayerNorm(epsilon=1e-5).apply({"params": head["norm"]}, x)
    x = nn.gelu(x @ head["inner"]["kernel"] + head["inner"]["bias"], approximate=False)
    return x @ head["outer"]["kernel"] + head["outer"]["bias"]


def moved(variables):
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), variables)


def test_loss_and_gradient_are_the_papers():
    """10 / 2 times the mean squared error to a block's input, which no gradient passes; to the first's, embedded."""
    _, blocks, feed, _, state = made(rules.lopt())
    assert [len(block.units) for block in blocks] == [2, 1, 1]
    embedding, layer = models.gpt(**OPTIONS)[:2]
    batch, carry = batch_of(), None
    for i, block in enumerate(blocks[:-1]):
        variables = moved(state.blocks[i].variables)
        carry = feed(i, carry, batch, KEY, train=True)

        def textbook(params, given=carry, i=i):
            x = embedding.apply({"params": params["unit_0"]}, given, train=False) if i == 0 else given
            y = layer.apply({"params": params[f"unit_{1 - i}"]}, x, train=False)
            error = decoded(params["head"]["reconstruction"], y) - jax.lax.stop_gradient(x)
            return 5 * jnp.mean(error**2)

        expected_loss, expected = jax.value_and_grad(textbook)(variables["params"])
        gradient, carry, out = gradients(block, variables, carry, batch, KEY, dtype=jnp.float32)
        np.testing.assert_allclose(out.loss, expected_loss, rtol=1e-5)
        np.testing.assert_allclose(out.metrics["reconstruction"], expected_loss / 5, rtol=1e-5)
        chex.assert_trees_all_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_decoder_starts_as_the_authors():
    """Xavier's uniform draw with a gain of 0.1, biases of zero; it sees one position."""
    x = jax.random.normal(KEY, (2, 5, 256))
    missed, variables = init_module(Reconstruction(), KEY, Kept(x, x))
    for name, shape in (("inner", (256, 64)), ("outer", (64, 256))):
        kernel = np.asarray(variables["params"][name]["kernel"])
        assert kernel.shape == shape
        assert np.abs(kernel).max() == pytest.approx(0.1 * np.sqrt(6 / 320), rel=0.01)
        assert not variables["params"][name]["bias"].any()
    other = x.at[:, -1].set(0.0)
    again, _ = Reconstruction().init_with_output(KEY, Kept(other, other), train=False)
    np.testing.assert_array_equal(again[:, :-1], missed[:, :-1])


def test_labels_reach_the_last_block_alone():
    *_, executor, state = made(rules.lopt())
    batch = batch_of()
    told, _ = executor.step(toy.copy(state), batch)
    other, _ = executor.step(toy.copy(state), batch._replace(label=(batch.label + 1) % 11))
    chex.assert_trees_all_equal(told.blocks[:-1], other.blocks[:-1])
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(told.blocks[-1], other.blocks[-1])


def test_a_unit_has_the_variables_and_outputs_that_it_has_in_any_other_run():
    """So training starts from a network that another rule trained."""
    unit, x = models.gpt(**OPTIONS)[1], jax.random.normal(KEY, (2, 8, 16))
    expected, variables = init_module(unit, KEY, x)
    _, own = init_module(Keeping(unit), KEY, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(own, variables)
    kept = Keeping(unit).apply(variables, x, train=False)
    np.testing.assert_array_equal(kept.x, expected)
    np.testing.assert_array_equal(kept.given, x)


def test_a_block_learns_to_be_read():
    """Most of what the second block is given is found again in what it puts out."""
    units = models.gpt(**OPTIONS)
    network, local = rules.lopt()(Network(units, cut_everywhere(units)), TASK)
    blocks = make_blocks(network, local)
    executor = fused(blocks, local.feed, optax.sgd(0.3, momentum=0.9))
    state = executor.init(KEY, batch_of())
    for _ in range(200):
        state, metrics = executor.step(state, batch_of())
    own, batch = state.blocks[0].variables, batch_of()
    kept, _ = run(blocks[0], own, batch.input, batch, KEY, train=False, dtype=jnp.float32)
    assert metrics[1]["reconstruction"] < 0.3 * jnp.var(kept.x)


@pytest.mark.parametrize(
    ("rule", "cuts", "words"),
    [
        (lambda: rules.lopt(0.0), (), "weight 0.0 given; choose one above 0"),
        (rules.lopt, (), r"cuts \(\) give one block"),
        (rules.lopt, (1,), r"cuts \(1,\) give one block, as none is made of unit 0 alone"),
        (lambda: rules.adapt(rules.lopt()), (2,), "puts out no array"),
        (lambda: rules.man(rules.lopt()), (2,), "man goes around a rule that neither changes the units"),
        (lambda: rules.deep_supervision(rules.lopt()), (2,), "a rule that feeds blocks its own way"),
        (lambda: rules.shared(rules.lopt()), (2,), "a head with one unembedding is needed"),
    ],
)
def test_what_is_refused(rule, cuts, words):
    def start():
        network, local = rule()(Network(models.gpt(**OPTIONS), cuts), TASK)
        fused(make_blocks(network, local), local.feed, toy.OPTIMIZER).init(KEY, batch_of())

    with pytest.raises(ValueError, match=words):
        start()


def test_a_block_that_changes_the_positions_is_refused():
    """As a stride does; features may differ."""
    image = Batch(jnp.ones((2, 8, 8, 1)), jnp.zeros(2, jnp.int32))
    for strides in (1, 2):
        units = models.convnet((4, 6, 6), (1, strides, 1))
        network, local = rules.lopt()(Network(units, (2,)), Task(10))
        executor = fused(make_blocks(network, local), local.feed, toy.OPTIMIZER)
        if strides == 1:
            executor.step(executor.init(KEY, image), image)
        else:
            with pytest.raises(ValueError, match="a block makes 8x8x4 into 4x4x6: cut the network where"):
                executor.init(KEY, image)
