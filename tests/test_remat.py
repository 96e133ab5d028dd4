"""Rematerialisation: the same numbers, in less memory."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxlocal import Batch, Network, fused, make_blocks, models, rules
from tests import toy


@pytest.mark.parametrize("base", [rules.backprop(), rules.man(rules.dgl())])
@pytest.mark.parametrize("options", [(1,), (2,), (2, True)])
def test_the_update_is_the_same(base, options):
    results = []
    for rule in (base, rules.remat(base, *options)):
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
        executor = fused(blocks, local_rule.feed, optimizer)
        (program,) = executor.programs(jax.eval_shape(executor.init, jax.random.key(0), batch), batch)
        took.append(program.lowered.compile().memory_analysis().temp_size_in_bytes)
    assert took[1] < 0.45 * took[0]


def test_bad_span():
    with pytest.raises(ValueError, match="every 0 units given"):
        rules.remat(rules.backprop(), 0)
