"""Backprop in stages computes backprop's update; the simulator agrees with what can be said without it."""

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.trials.simulator import (
    Profile,
    best_of_backprop,
    best_of_blocks,
    block_parallel,
    data_parallel,
    model_parallel,
)
from jaxlocal import rules
from jaxlocal.executors import OneDevice
from jaxlocal.executors.model_parallel import ModelParallel, measure_units
from tests import toy
from tests.programs import assert_one_line_error, program


@pytest.mark.parametrize("microbatches", [1, 2])
def test_stages_make_the_update_of_one_device(microbatches):
    """Without batch norm's dependence on the microbatch: the mean of two gradients is that of the whole batch."""
    t = toy.make(rules.backprop())
    places = [OneDevice(device) for device in jax.devices()[:2]]
    stages = ModelParallel(t.blocks[0], toy.OPTIMIZER, places, (2,), microbatches)
    alike = jax.tree.map(lambda x: jnp.repeat(x[:16], 2, axis=0), t.batch)  # both microbatches are the same
    states, parts = stages.init(t.state.blocks[0], alike)
    states, loss = stages.step(states, parts)
    expected, metrics = t.executor.step(t.state, alike)
    params = jax.device_get({name: leaf for params, *_ in states for name, leaf in params.items()})
    chex.assert_trees_all_close(params, jax.device_get(expected.blocks[0].variables["params"]), rtol=1e-4, atol=1e-5)
    assert float(loss) == pytest.approx(float(metrics[0]["loss"]), rel=1e-5)
    assert {leaf.device for leaf in jax.tree.leaves(states[1])} == {jax.devices()[1]}


@pytest.mark.slow
def test_units_are_measured():
    t = toy.make(rules.backprop())
    units = measure_units(t.blocks[0], toy.OPTIMIZER, t.state.blocks[0], t.batch, rounds=2)
    assert min(units.forward + units.backward) > 0
    assert units.outputs[0] == 32 * 8 * 8 * 8 * 4
    assert len(units.parameters) == 5


PROFILE = Profile(
    blocks=[1.0] * 8,
    block_parameters=[8] * 8,
    block_outputs=[4] * 8,
    forward=[1.0] * 8,
    backward=[2.0] * 8,
    unit_parameters=[8] * 8,
    unit_outputs=[4] * 8,
    bandwidth=1e9,
)


def test_equal_stages_are_always_busy():
    rate = block_parallel(PROFILE, (2, 4, 6))
    assert rate.seconds == pytest.approx(2, rel=1e-6)
    assert rate.utilisation == pytest.approx(1, rel=1e-6)
    assert rate.sent == 3  # three of four stages send four bytes on


def test_the_slowest_stage_sets_the_pace():
    assert block_parallel(PROFILE, (5,)).seconds == pytest.approx(5, rel=1e-6)


def test_a_slow_link_delays_but_does_not_hold_up():
    """Sending overlaps with computing: the rate is that of the stages."""
    assert block_parallel(PROFILE._replace(bandwidth=4.0), (4,)).seconds == pytest.approx(4, rel=1e-6)


def test_a_link_carries_one_message_at_a_time():
    slow = PROFILE._replace(bandwidth=0.1)  # forty seconds for a message
    assert block_parallel(slow, (4,)).seconds == pytest.approx(40, rel=1e-6)
    assert model_parallel(slow, (4,), 8).seconds >= 80


def test_backprop_in_stages_gains_nothing_without_microbatches():
    assert model_parallel(PROFILE, (2, 4, 6)).seconds == pytest.approx(24, rel=1e-6)
    for m in (4, 8):  # the bubble of GPipe: (S - 1) / (M + S - 1)
        assert model_parallel(PROFILE, (2, 4, 6), m).utilisation == pytest.approx(m / (m + 3), rel=1e-6)


def test_a_ring_sends_each_byte_twice():
    rate = data_parallel(1.0, 100, 4, 150.0)
    assert rate.sent == 150
    assert rate.seconds == 2.0


def test_the_best_grid_depends_on_the_network():
    """Parameters are dear to average, activations to send."""
    uneven = PROFILE._replace(blocks=[1.0] * 7 + [2.0])
    heavy = uneven._replace(block_parameters=[10**10] * 8)
    assert best_of_blocks(uneven, 8).stages == 1
    assert best_of_blocks(heavy, 8).stages == 8
    assert best_of_backprop(PROFILE, 8, 4).stages == 1


def test_bad_flags(tmp_path):
    assert_one_line_error(program("scaling", "--rule=dgll", f"--workdir={tmp_path}"), "did you mean 'dgl'")
    assert_one_line_error(program("scaling", "--devices=1,3", f"--workdir={tmp_path}"), "does not split into 3 equal")
