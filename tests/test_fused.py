"""The fused executor computes what a textbook says, in the memory that it promises."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlocal import (
    Batch,
    LocalRule,
    Network,
    Task,
    chain,
    cut_everywhere,
    fused,
    make_blocks,
    models,
    readout,
    rules,
    streamed,
    through,
)
from jaxlocal.executors import ONE_DEVICE, compiler, pipelined
from jaxlocal.executors.fused import train_step
from jaxlocal.heads import Classifier
from jaxlocal.layers import global_average_pool
from jaxlocal.objective import no_sync
from tests import toy


def test_one_block_equals_jax_grad_of_the_textbook_loss():
    t = toy.make(rules.backprop())
    variables = t.state.blocks[0].variables

    def textbook(params):
        x = t.batch.input
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
    carry = t.batch.input
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


def test_dropout_follows_from_seed_and_step_alone():
    t = toy.make(toy.composite())
    a, same, later = (
        t.executor.step(toy.copy(t.state).replace(step=jnp.int32(step)), t.batch)[1][0]["loss"] for step in (0, 0, 1)
    )
    assert a == same != later


def test_equal_blocks_are_traced_once():
    """Of four blocks with one objective, the first has another input and the others share a trace."""
    traced = []
    head = readout(Classifier(10))

    def counted(variables, carry, batch, key, *, train):
        traced.append(carry.shape)
        return head.apply(variables, carry, batch, key, train=train)

    objectives = tuple(head._replace(apply=counted, sync=no_sync) for i in range(4))
    units = models.mlp((64, 32, 32, 32))
    blocks = make_blocks(Network(units, (1, 2, 3)), LocalRule(objectives))
    example = jax.tree.map(lambda x: x[:1], toy.digits())
    executor = fused(blocks, chain(), toy.OPTIMIZER)
    executor.step(executor.init(jax.random.key(0), example), toy.digits())
    assert len(traced) == 3  # 64 -> 64, 64 -> 32, and 32 -> 32 for two blocks


def temporaries(rule, make=fused):
    """MiB of temporaries of a ResNet-32 step at batch 128: of its one program, or of the largest."""
    units = models.resnet(32)
    network, local_rule = rule(Network(units, cut_everywhere(units)), Task(10))
    executor = make(make_blocks(network, local_rule), local_rule.feed, optax.sgd(0.1, momentum=0.9, nesterov=True))
    batch = Batch(jnp.zeros((128, 32, 32, 3)), jnp.zeros(128, jnp.int32))
    programs = executor.programs(jax.eval_shape(executor.init, jax.random.key(0), batch), batch)
    return max(program.compile().memory_analysis().temp_size_in_bytes for program in programs) / 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "make", "most"),
    [
        (rules.backprop(), fused, 170),
        (rules.remat(rules.backprop()), fused, 105),
        (rules.auglocal(2), fused, 85),
        (rules.remat(rules.auglocal(2)), fused, 70),
        (rules.remat(rules.auglocal(2)), streamed, 60),
        (rules.greedy(), fused, 58),
        (rules.greedy(), streamed, 42),
    ],
)
def test_a_step_takes_the_memory_of_one_block(rule, make, most):
    """MiB of temporaries of ResNet-32 in 16 units."""
    assert temporaries(rule, make) <= most


def test_without_order_the_step_is_the_same(monkeypatch):
    """The barrier is the identity: only the schedule depends on it."""
    t = toy.make(rules.greedy())
    ordered, _ = t.executor.step(toy.copy(t.state), t.batch)
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda x: x)
    plain, _ = jax.jit(lambda state: train_step(t.blocks, t.feed, toy.OPTIMIZER, state, t.batch))(t.state)
    chex.assert_trees_all_close(ordered.blocks, plain.blocks, rtol=2e-4, atol=2e-6)


def test_evaluation_is_that_of_running_statistics():
    t = toy.make(rules.greedy())
    state, _ = t.executor.step(t.state, t.batch)
    exits = t.executor.evaluate(state, t.batch)
    x = t.batch.input
    for unit, block, out in zip(t.network.units, state.blocks, exits, strict=True):
        variables = block.variables
        statistics = variables["batch_stats"]["unit_0"]
        x = unit.apply({"params": variables["params"]["unit_0"], "batch_stats": statistics}, x, train=False)
        dense = variables["params"]["head"]["dense"]
        logits = global_average_pool(x) @ dense["kernel"] + dense["bias"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, t.batch.label).mean()
        np.testing.assert_allclose(out["loss"], loss, rtol=1e-5)


def test_preparation_draws_anew_in_every_step_and_not_at_all_in_evaluation():
    def noisy(batch, key, *, train):
        noise = jax.random.normal(key, batch.input.shape) if train else jnp.zeros_like(batch.input)
        return batch._replace(input=batch.input + noise)

    t = toy.make(rules.greedy())
    executor = fused(t.blocks, t.feed, toy.OPTIMIZER, prepare=noisy)
    first, again, later = (
        float(executor.step(toy.copy(t.state).replace(step=jnp.int32(step)), t.batch)[1][0]["loss"])
        for step in (0, 0, 1)
    )
    assert first == again != later
    assert executor.evaluate(t.state, t.batch) == t.executor.evaluate(t.state, t.batch)


def test_the_peer_is_the_next_block_before_the_step():
    def next_unit(variables, peer, *, start):
        return {**variables, "params": peer["unit_0"]}

    def rule(network, task):
        last = readout(Classifier(task.num_classes))
        unit = network.units[1]
        return network._replace(cuts=(1,)), LocalRule((through(unit, last, sync=next_unit), last))

    t = toy.make(rule)
    state, _ = t.executor.step(toy.copy(t.state), t.batch)
    adapter = state.blocks[0].variables["params"]["head"]["adapter"]
    chex.assert_trees_all_equal(adapter, t.state.blocks[1].variables["params"]["unit_0"])


@pytest.mark.slow
def test_frozen_heads_stay_under_weight_decay():
    t = toy.make(toy.composite())
    optimizer = optax.chain(optax.add_decayed_weights(0.5), toy.OPTIMIZER)
    example = jax.tree.map(lambda x: x[:1], t.batch)
    before = fused(t.blocks, t.feed, optimizer).init(jax.random.key(0), example)
    after, _ = train_step(t.blocks, t.feed, optimizer, before, t.batch)
    for old, new in zip(before.blocks[:-1], after.blocks[:-1], strict=True):
        chex.assert_trees_all_equal(old.variables["fixed"], new.variables["fixed"])


def test_a_unit_that_pools_its_input_away_is_refused():
    units = models.convnet((4, 4, 4, 4, 4), (2, 2, 2, 2, 1))
    network, rule = rules.backprop()(Network(units), Task(10))
    example = jax.tree.map(lambda x: x[:1], toy.digits())
    with pytest.raises(ValueError, match=r"ConvUnit leaves nothing of an input of shape \(1, 1, 1, 4\)"):
        fused(make_blocks(network, rule), rule.feed, toy.OPTIMIZER).init(jax.random.key(0), example)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.int32, "float8_e4m3fn", jnp.float64])
def test_dtypes_that_are_not_computed_in_are_refused(dtype):
    t = toy.make(rules.greedy())
    arguments = t.blocks, t.feed, toy.OPTIMIZER
    stages = {"placements": [ONE_DEVICE], "starts": []}
    for make in (fused, streamed, functools.partial(pipelined, **stages)):
        with pytest.raises(ValueError, match=r"^dtype \w+ given; compute in float32, bfloat16, or float64 under"):
            make(*arguments, dtype=dtype)
    with pytest.raises(ValueError, match="float16 would need its loss scaled"):
        train_step(*arguments, t.state, t.batch, dtype=dtype)


def test_float64_is_computed_in_under_x64():
    t = toy.make(rules.greedy())
    with jax.enable_x64(True):
        fused(t.blocks, t.feed, toy.OPTIMIZER, dtype=jnp.float64)


def test_the_cache_is_set_back_when_the_last_thread_has_compiled():
    """Programs are compiled by several at once, and one may end before another."""
    option, guard = "jax_persistent_cache_min_compile_time_secs", compiler._Uncached()
    before = getattr(jax.config, option)
    guard.__enter__()
    with guard:
        guard.__exit__(None, None, None)
        assert getattr(jax.config, option) == math.inf
    assert getattr(jax.config, option) == before
