"""The streamed executor: few programs, few states on the device. That it agrees with the others is in the contract."""

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.training.checkpoint import Checkpoints
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
)
from jaxlocal.heads import Classifier
from jaxlocal.objective import through
from jaxlocal.variables import nbytes
from tests import toy


@pytest.mark.slow
def test_resnet110_in_55_blocks_is_a_handful_of_programs():
    """Stem, and in each of three stages the first unit and the others; the last block has no cut."""
    units = models.resnet(110, width=4)
    network, local_rule = rules.dgl()(Network(units, cut_everywhere(units)), Task(10))
    executor = streamed(make_blocks(network, local_rule), local_rule.feed, toy.OPTIMIZER)
    batch = Batch(jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32))
    state = jax.eval_shape(executor.init, jax.random.key(0), batch)
    programs = executor.programs(state, batch)
    assert [(program.what, program.times) for program in programs] == [
        ("prepare", 1), ("update", 1), ("update", 18), ("update", 1), ("update", 17), ("update", 1), ("update", 16),
        ("update", 1),
    ]  # fmt: skip
    assert all(program.resident >= nbytes((state.blocks, batch)) for program in programs)


def small(rule, make, feed=None, **options):
    """An executor of four dense blocks on digits, and an example for its initialisation."""
    units = models.mlp((32, 32, 32, 32))
    network, local_rule = rule(Network(units, cut_everywhere(units)), Task(10))
    executor = make(make_blocks(network, local_rule), feed or local_rule.feed, toy.OPTIMIZER, **options)
    return executor, jax.tree.map(lambda x: x[:1], toy.digits())


def test_three_states_at_most_are_on_the_device():
    """Those of the block at work, of the one before and of the next; seen when a block is fed."""
    seen = []
    before = 0

    def on_device():
        return sum(x.nbytes for x in jax.live_arrays() if x.sharding.memory_kind == "device")

    def watching(index, previous, batch, key, *, train):
        seen.append(on_device() - before)
        return chain()(index, previous, batch, key, train=train)

    executor, example = small(rules.greedy(), streamed, watching, offload=True)
    state = executor.init(jax.random.key(0), example)
    state, _ = executor.step(state, toy.digits())
    sizes = [nbytes(block) for block in state.blocks]
    seen.clear()
    before = on_device()
    executor.step(state, toy.digits())
    beside = nbytes(toy.digits()) + 3 * 32 * 32 * 4  # the prepared batch, and what flows between blocks
    for i, bytes_seen in enumerate(seen):
        around = [sum(sizes[j % 4] for j in range(first, first + 3)) for first in (i - 1, i)]
        assert sizes[i] <= bytes_seen <= max(around) + beside


def test_evaluation_fetches_variables_alone(monkeypatch):
    """The optimizers' states stay at rest."""
    executor, example = small(rules.greedy(), streamed, offload=True)
    state = executor.init(jax.random.key(0), example)
    moved = []
    real = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda tree, *where: moved.append(nbytes(tree)) or real(tree, *where))
    executor.evaluate(state, toy.digits())
    assert moved == [nbytes(block.variables) for block in state.blocks]


@pytest.mark.parametrize("train", [True, False])
def test_the_host_does_not_run_ahead(train):
    """When a block is fed, and the next one's state was fetched, the output before the last is there."""
    outputs = []

    def watching(index, previous, batch, key, *, train):
        outputs.append(previous)
        if index >= 2:
            assert outputs[index - 1].is_ready()  # of block index - 2
        return chain()(index, previous, batch, key, train=train)

    units = models.mlp((1024,) * 8)
    network, local_rule = rules.greedy()(Network(units, cut_everywhere(units)), Task(10))
    executor = streamed(make_blocks(network, local_rule), watching, toy.OPTIMIZER, offload=True)
    batch = Batch(jnp.ones((1024, 1024)), jnp.zeros(1024, jnp.int32))
    state = executor.init(jax.random.key(0), jax.tree.map(lambda x: x[:1], batch))
    for _ in range(2):  # the first one compiles, and is waited for
        outputs.clear()
        if train:
            state, _ = executor.step(state, batch)
        else:
            executor.evaluate(state, batch)


def test_a_restored_state_rests_in_host_memory(tmp_path):
    executor, example = small(rules.greedy(), streamed, offload=True)
    state, _ = executor.step(executor.init(jax.random.key(0), example), toy.digits())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, 0.5)
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore(1, executor.init(jax.random.key(1), example))
    chex.assert_trees_all_equal(restored.blocks, state.blocks)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(restored.blocks)} == {"pinned_host"}


@pytest.mark.slow
def test_seeds_together():
    keys = jnp.stack([jax.random.key(seed) for seed in range(3)])
    results = []
    for make in (fused, streamed):
        executor, example = small(rules.man(rules.greedy()), make, batch_axes=Batch(None, None, None), seeds=True)
        state, metrics = executor.step(executor.init(keys, example), toy.digits())
        results.append((state.blocks, metrics, executor.evaluate(state, toy.digits())))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
    assert len({float(x) for x in results[0][1][-1]["loss"]}) == 3


def test_a_feed_that_computes():
    """Its shapes are found without running it."""

    def noisy(index, previous, batch, key, *, train):
        x = batch.input if index == 0 else previous
        return x + 0.1 * jax.random.normal(key, x.shape)

    results = []
    for make in (fused, streamed):
        executor, example = small(rules.greedy(), make, noisy)
        state, _ = executor.step(executor.init(jax.random.key(0), example), toy.digits())
        results.append(state.blocks)
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
    assert sum(program.times for program in executor.programs(state, toy.digits())) == 5


def test_the_last_block_has_no_peer():
    last = readout(Classifier(10))
    looking = through(models.ConvUnit(4), last, sync=lambda variables, peer, *, start: variables)
    units = models.convnet((4, 4), (1, 1))
    with pytest.raises(ValueError, match="no next block"):
        make_blocks(Network(units, (1,)), LocalRule((last, looking)))
    make_blocks(Network(units, (1,)), LocalRule((looking, last)))
