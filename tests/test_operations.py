"""Floating-point operations are counted in every turn of a loop."""

import jax
import jax.numpy as jnp
import pytest

from jaxlocal.executors.operations import operations

X = jnp.zeros((16, 16))
ONE = 2 * 16**3


def product(x, times):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=times)[0]


PROGRAMS = {
    "no loop": (lambda x: x @ x, 1),
    "a loop": (lambda x: product(x, 7), 7),
    "a counted loop": (lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x), 5),
    "a loop within a loop": (lambda x: jax.lax.map(lambda x: product(x, 3), jnp.stack([x] * 4)), 12),
    "a loop in a function, twice": (
        lambda x: jax.jit(lambda x: product(x, 3))(x) + jax.checkpoint(product, static_argnums=1)(x, 4),
        7,
    ),
    "the longer branch": (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: product(x, 6), lambda x: product(x, 2), x), 6),
    "a platform's own branch": (
        lambda x: jax.lax.platform_dependent(x, cpu=lambda x: product(x, 9), default=lambda x: product(x, 2)),
        2,
    ),
    "a gradient": (lambda x: jax.grad(lambda x: jnp.sum(product(x, 5)))(x), 15),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_turn_counts(name):
    program, products = PROGRAMS[name]
    assert operations(jax.jit(program).trace(X)) == pytest.approx(products * ONE, rel=0.05)
