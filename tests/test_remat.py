"""Rematerialisation: the same numbers, in less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxlocal import Batch, Network, fused, init_state, make_blocks, models, rules
from tests import toy


@pytest.mark.parametrize("base", [rules.backprop(), rules.man(rules.dgl())])
@pytest.mark.parametrize("every", [1, 2])
def test_the_update_is_the_same(base, every):
    results = []
    for rule in (base, rules.remat(base, every)):
        t = toy.make(rule)
        state, _ = t.executor.step(t.state, t.batch)
        results.append([b.variables for b in state.blocks])
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_it_takes_less_memory():
    """Temporaries of the compiled step of ResNet-32 at batch 128; both at the best compiler schedule."""
    units = models.resnet(32)
    batch = Batch(jnp.zeros((128, 32, 32, 3)), jnp.zeros(128, jnp.int32))
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    took = []
    for rule in (rules.backprop(), rules.remat(rules.backprop())):
        network, local_rule = rule(Network(units), 10)
        blocks = make_blocks(network, local_rule)
        feed = local_rule.feed
        state = jax.eval_shape(functools.partial(init_state, blocks, feed, optimizer), jax.random.key(0), batch)
        compiled = fused(blocks, feed, optimizer).step.lower(state, batch).compile()
        took.append(compiled.memory_analysis().temp_size_in_bytes)
    assert took[1] < 0.45 * took[0]


def test_bad_span():
    with pytest.raises(ValueError, match="every 0 units given"):
        rules.remat(rules.backprop(), 0)
