"""Blocks on devices of their own: the numbers of one device, whatever is under way."""

import chex
import jax
import pytest

from jaxlocal import fused, rules
from jaxlocal.block import params_of
from jaxlocal.executors import ONE_DEVICE, DataParallel, OneDevice, block_seconds, pipelined
from jaxlocal.executors.link import Link
from tests import toy
from tests.test_contract import ROWS, rows
from tests.test_data_parallel import parts

DEVICES = jax.devices()


def piped(t: toy.Toy, starts=(1, 3), placements=None, **options):
    starts = [start for start in starts if start < len(t.blocks)]
    placements = placements or [OneDevice(device) for device in DEVICES[: len(starts) + 1]]
    return pipelined(t.blocks, t.feed, toy.OPTIMIZER, placements=placements, starts=starts, **options)


def trained(executor, t: toy.Toy, placement=ONE_DEVICE, steps=3):
    state = executor.init(jax.random.key(0), jax.tree.map(lambda x: x[:1], t.batch))
    batch = parts(t.batch, placement)
    for _ in range(steps):
        state, metrics = executor.step(state, batch)
    return state, metrics, executor.evaluate(state, batch)


@pytest.mark.slow
@rows
def test_stages_compute_what_one_device_does(name):
    """A block that looks at the next one (MAN) sees it across stages as it would within one."""
    t = toy.make(ROWS[name][0])
    (state, *found), (expected_state, *expected) = trained(piped(t), t), trained(t.executor, t)
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), rtol=1e-5, atol=1e-6)
    blocks, expected_blocks = jax.device_get((state.blocks, expected_state.blocks))
    chex.assert_trees_all_close(blocks, expected_blocks, rtol=1e-5, atol=1e-6)
    homes = [{leaf.device for leaf in jax.tree.leaves(block)} for block in state.blocks]
    assert homes == [{DEVICES[(i > 0) + (i > 2)]} for i in range(len(t.blocks))]


@pytest.mark.slow
def test_runs_twice_to_the_bit():
    """Stages run beside each other, and nothing depends on which is faster."""
    t = toy.make(rules.man(rules.greedy()))
    first, second = (jax.device_get(trained(piped(t, (1, 2, 3)), t)[0].blocks) for _ in range(2))
    chex.assert_trees_all_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_a_grid_of_stages_and_parts_of_the_batch(mapping):
    """Two stages of two devices each, against one row of two devices."""
    t = toy.make(rules.man(rules.dgl()))
    rows_of = [DataParallel(DEVICES[i : i + 2], mapping, sync_batch_norm=True) for i in (0, 2)]
    row = fused(t.blocks, t.feed, toy.OPTIMIZER, placement=rows_of[0])
    found, expected = (
        jax.device_get((state.blocks, *rest))
        for state, *rest in (trained(executor, t, rows_of[0]) for executor in (piped(t, (2,), rows_of), row))
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_links_keep_values_and_say_where_they_are():
    ring = [OneDevice(device) for device in DEVICES[:3]]
    tree = {"a": jax.numpy.arange(6.0), "b": (jax.numpy.ones((2, 3), int),), "what a text has not": None}
    there = Link(ring[1], ring[2])(Link(ring[0], ring[1])(ring[0].replicate(tree), 0), 0)
    chex.assert_trees_all_equal(there, jax.device_put(tree, DEVICES[2]))
    assert {leaf.device for leaf in jax.tree.leaves(there)} == {DEVICES[2]}


@pytest.mark.slow
def test_several_seeds_train_together():
    t = toy.make(rules.man(rules.greedy()))
    keys = jax.random.split(jax.random.key(0), 2)
    one_image = jax.tree.map(lambda x: x[:1], t.batch)
    twice = jax.tree.map(lambda x: jax.numpy.stack([x, x]), t.batch)
    results = []
    for executor in (piped(t, seeds=True), fused(t.blocks, t.feed, toy.OPTIMIZER, seeds=True)):
        state, metrics = executor.step(executor.init(keys, one_image), twice)
        results.append(jax.device_get((state.blocks, metrics, executor.evaluate(state, t.batch))))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


def test_few_batches_are_under_way(monkeypatch):
    """The host does not run ahead of the devices by more than the stages hold."""
    t = toy.make(rules.greedy())
    executor, waited = piped(t), []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    trained(executor, t, steps=8)
    assert len(waited) == 8 - 4  # of three stages, each with a batch, and one batch more


def test_programs_are_the_stages():
    t = toy.make(rules.dgl())
    programs = piped(t).programs(t.state, t.batch)
    assert [program.what for program in programs] == ["stage 0", "stage 1", "stage 2"]
    (whole,) = t.executor.programs(t.state, t.batch)
    flops = [p.flops() for p in (*programs, whole)]
    assert sum(flops[:3]) == pytest.approx(flops[3], rel=0.05)


def test_shapes_of_a_state_are_found_without_it():
    t = toy.make(rules.dgl())
    executor, image = piped(t), jax.tree.map(lambda x: x[:1], t.batch)
    shapes = jax.eval_shape(executor.init, jax.random.key(0), image)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes.blocks, executor.init(jax.random.key(0), image).blocks)


@pytest.mark.slow
def test_seconds_of_blocks():
    t = toy.make(rules.dgl())
    before = jax.device_get(t.state.blocks)
    seconds = block_seconds(t.blocks, t.feed, toy.OPTIMIZER, t.state, t.batch)
    assert len(seconds) == 5
    assert min(seconds) > 0
    chex.assert_trees_all_equal(jax.device_get(t.state.blocks), before)


@pytest.mark.parametrize("starts", [(), (0,), (5,), (2, 2)])
def test_stages_that_do_not_fit_are_refused(starts):
    t = toy.make(rules.greedy())
    with pytest.raises(ValueError, match="give every placement at least one of the 5 blocks, in order"):
        pipelined(
            t.blocks,
            t.feed,
            toy.OPTIMIZER,
            placements=[OneDevice(d) for d in DEVICES[: max(2, len(starts) + 1)]],
            starts=starts,
        )


def test_what_a_neighbour_sees_are_parameters():
    t = toy.make(rules.greedy())
    assert params_of(t.state.blocks[0]).keys() == {"unit_0", "head"}
