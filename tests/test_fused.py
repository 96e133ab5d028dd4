"""The fused executor computes what a textbook says, in the memory that it promises."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlocal import Batch, Network, cut_everywhere, fused, init_state, make_blocks, models, rules
from jaxlocal.executors.fused import train_step
from jaxlocal.layers import global_average_pool
from tests import toy


def test_one_block_equals_jax_grad_of_the_textbook_loss():
    t = toy.make(rules.backprop())
    variables = t.state.blocks[0].variables

    def textbook(params):
        x = t.batch.image
        for i, unit in enumerate(t.network.units):
            collections = {"params": params[f"unit_{i}"], "batch_stats": variables["batch_stats"][f"unit_{i}"]}
            x, _ = unit.apply(collections, x, train=True, mutable=["batch_stats"])
        logits = global_average_pool(x) @ params["head"]["dense"]["kernel"] + params["head"]["dense"]["bias"]
        log_p = jax.nn.log_softmax(logits)
        return -jnp.mean(log_p[jnp.arange(len(t.batch.label)), t.batch.label])

    params = variables["params"]
    loss, gradient = jax.value_and_grad(textbook)(params)
    updates, _ = toy.OPTIMIZER.update(gradient, toy.OPTIMIZER.init(params), params)
    expected = optax.apply_updates(params, updates)
    state, metrics = t.executor.step(toy.copy(t.state), t.batch)
    np.testing.assert_allclose(metrics[0]["loss"], loss, rtol=1e-5)
    chex.assert_trees_all_close(state.blocks[0].variables["params"], expected, rtol=1e-4, atol=1e-6)


def test_a_block_sees_only_its_own_loss():
    """With greedy heads, each block's update is that of a one-block network fed with its input."""
    t = toy.make(rules.greedy())
    state, _ = t.executor.step(toy.copy(t.state), t.batch)
    carry = t.batch.image
    for i, (unit, old, new) in enumerate(zip(t.network.units, t.state.blocks, state.blocks, strict=True)):
        params, statistics = old.variables["params"], old.variables["batch_stats"]

        def loss(params, unit=unit, statistics=statistics, carry=carry):
            collections = {"params": params["unit_0"], "batch_stats": statistics["unit_0"]}
            y, _ = unit.apply(collections, carry, train=True, mutable=["batch_stats"])
            logits = global_average_pool(y) @ params["head"]["dense"]["kernel"] + params["head"]["dense"]["bias"]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, t.batch.label)), y

        gradient, carry = jax.grad(loss, has_aux=True)(params)
        updates, _ = toy.OPTIMIZER.update(gradient, toy.OPTIMIZER.init(params), params)
        expected = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(
            new.variables["params"], expected, rtol=1e-4, atol=1e-6, custom_message=f"block {i}"
        )


def test_state_is_donated():
    t = toy.make(rules.greedy())
    old = toy.copy(t.state)
    t.executor.step(old, t.batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.blocks))


def test_steps_follow_from_seed_and_step_alone():
    t = toy.make(rules.auglocal())
    a, _ = t.executor.step(toy.copy(t.state), t.batch)
    b, _ = toy.make(rules.auglocal()).executor.step(toy.copy(t.state), t.batch)
    chex.assert_trees_all_equal(a.blocks, b.blocks)


def test_equal_blocks_are_traced_once():
    """16 blocks of ResNet-32 under greedy heads have five distinct structures, and one is the last."""
    units = models.resnet(32)
    network, rule = rules.greedy()(Network(units, cut_everywhere(units)), 10)
    blocks = make_blocks(network, rule)
    assert len(blocks) == 16
    assert len(set(blocks)) == 6  # stem; three stages; the first block of stages two and three


@pytest.fixture(scope="module")
def temporaries():
    """MiB of temporaries of a compiled ResNet-32 step, batch 128, by rule."""

    def measure(rule):
        units = models.resnet(32)
        network, local_rule = rule(Network(units, cut_everywhere(units)), 10)
        blocks = make_blocks(network, local_rule)
        image, label = jnp.zeros((128, 32, 32, 3)), jnp.zeros(128, jnp.int32)
        optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
        example = Batch(image[:1], label[:1])
        state = jax.eval_shape(lambda: init_state(blocks, local_rule.feed, optimizer, jax.random.key(0), example))
        lowered = fused(blocks, local_rule.feed, optimizer).step.lower(state, Batch(image, label))
        return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20

    return {name: measure(rule) for name, rule in (("backprop", rules.backprop()), ("auglocal", rules.auglocal(2)))}


@pytest.mark.slow
def test_auglocal_takes_less_than_half_of_backprops_memory(temporaries):
    """Both at their best compiler schedule, ResNet-32 in 16 units."""
    assert temporaries["backprop"] < 260
    assert temporaries["auglocal"] <= 0.48 * temporaries["backprop"]


def test_without_order_the_step_is_the_same():
    """The barrier is the identity: only the schedule depends on it."""
    t = toy.make(rules.dgl())
    ordered, _ = t.executor.step(toy.copy(t.state), t.batch)
    plain, _ = train_step(t.blocks, t.feed, toy.OPTIMIZER, t.state, t.batch)
    chex.assert_trees_all_close(ordered.blocks, plain.blocks, rtol=2e-4, atol=2e-6)
