"""The branch around an update: what it costs, and what it does for several seeds."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxlocal import Batch, Network, Task, block, make_blocks, models, rules
from jaxlocal.executors.compiler import compiler_options, uncached
from jaxlocal.guard import changed_if, checked
from jaxlocal.variables import nbytes


def change(state, by):
    return jax.tree.map(lambda x, g: x - 0.5 * g, state, by)


@pytest.mark.parametrize("bad", [(), (1,), (0, 1, 2)])
def test_each_seed_is_guarded_by_itself(bad):
    state = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones((3, 4))}
    by = jax.tree.map(jnp.copy, state)
    finite = jnp.array([i not in bad for i in range(3)])
    found = jax.jit(jax.vmap(lambda *args: changed_if(args[0], change, *args[1:])))(finite, state, by)
    for i in range(3):
        old, its = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (state, by))
        chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], found), old if i in bad else change(old, its))


def test_what_all_seeds_share_is_as_good():
    """The gradient may be the same for all; or the state."""
    state, by = jnp.arange(6.0).reshape(3, 2), jnp.ones(2)
    finite = jnp.array([True, False, True])
    found = jax.vmap(lambda ok, s: changed_if(ok, change, s, by))(finite, state)
    chex.assert_trees_all_equal(found, state - jnp.array([[0.5], [0.0], [0.5]]))
    found = jax.vmap(lambda ok: changed_if(ok, change, state[0], by))(finite)
    chex.assert_trees_all_equal(found, state[:1] - jnp.array([[0.5], [0.0], [0.5]]))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_one_number_is_enough(value):
    gradient = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    assert checked(gradient, jnp.ones(()))[1]
    assert not checked(gradient | {"b": jnp.array([1.0, value, 1.0, 1.0])}, jnp.ones(()))[1]
    assert not checked(gradient, (jnp.ones(3), {"c": jnp.full(2, value)}))[1]


def test_it_takes_the_memory_of_an_update_without_it(monkeypatch):
    """Six dense layers of 2048, AdamW: the whole state is updated in place."""
    optimizer = optax.adamw(1e-3)
    network, local = rules.backprop()(Network(models.mlp((2048,) * 6)), Task(10))
    (whole,) = make_blocks(network, local)
    batch = Batch(jnp.zeros((32, 2048)), jnp.zeros(32, jnp.int32))
    state = jax.eval_shape(lambda: block.init(whole, jax.random.key(0), batch.input[:1], batch, optimizer)[0])

    def step():
        update = functools.partial(block.update, whole, optimizer, dtype=jnp.float32)
        jitted = jax.jit(update, donate_argnums=0, compiler_options=compiler_options())
        with jax.numpy_dtype_promotion("standard"):  # of optax
            lowered = jitted.lower(state, batch.input, batch, jax.random.key(0))
        with uncached():
            memory = lowered.compile().memory_analysis()
        return nbytes(state) + memory.temp_size_in_bytes

    guarded = step()
    monkeypatch.setattr(block, "checked", lambda gradient, others: (gradient, jnp.array(True)))
    monkeypatch.setattr(block, "changed_if", lambda finite, change, state, by: change(state, by))
    assert guarded <= 1.05 * step()
