"""NoProp in continuous time: many small steps, in low precision too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Network, Task, diagnostics, fused, make_blocks, models, rules
from tests import toy


@pytest.mark.parametrize("rule", [rules.noprop_fm, rules.noprop_ct])
@pytest.mark.parametrize("solver", ["euler", pytest.param("heun", marks=pytest.mark.slow)])
def test_a_thousand_steps_lead_as_far_in_bfloat16(rule, solver):
    """The network always answers class 3: so has z to, at the end of the way."""
    network, local = rule(steps=1000, solver=solver)(Network(models.noprop(2, width=0.1), ()), Task(10))
    blocks, feed = make_blocks(network, local), local.feed
    batch = toy.digits(8)
    state = fused(blocks, feed, toy.OPTIMIZER).init(jax.random.key(0), toy.digits(1))
    answer = state.blocks[0].variables["params"]["unit_0"]["guess"]["answer"]
    answer["bias"] = 6.0 * jax.nn.one_hot(3, 10)
    full, half = (
        jax.jit(lambda state, dtype=dtype: diagnostics.observe(blocks, feed, state, batch, dtype=dtype).logits[0])(
            state
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert (jnp.argmax(full, axis=1) == 3).all()
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.05 * float(jnp.abs(full).max()))
