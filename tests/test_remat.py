"""Rematerialisation: the same numbers. What it takes is in test_fused."""

import chex
import pytest

from jaxlocal import rules
from tests import toy


@pytest.mark.slow
@pytest.mark.parametrize("base", [rules.backprop(), rules.man(rules.dgl())])
@pytest.mark.parametrize("options", [(1,), (2,), (2, True)])
def test_the_update_is_the_same(base, options):
    results = []
    for rule in (base, rules.remat(base, *options)):
        t = toy.make(rule)
        state, _ = t.executor.step(t.state, t.batch)
        results.append([b.variables for b in state.blocks])
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)


def test_bad_span():
    with pytest.raises(ValueError, match="every 0 units given"):
        rules.remat(rules.backprop(), 0)
