import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Batch, feature_objective, freeze, losses, readout, through, weighted_sum
from jaxlocal.heads import Classifier, ConvMlp
from jaxlocal.models import ConvUnit
from jaxlocal.objective import LocalObjective, ObjectiveOut, no_sync
from jaxlocal.variables import nest, pick

CARRY = jax.random.normal(jax.random.key(1), (4, 8, 8, 6))
BATCH = Batch(CARRY, jnp.array([0, 1, 2, 1]))
KEY = jax.random.key(0)
HEAD = readout(Classifier(3))


def activity() -> LocalObjective:
    """Mean square of the output: an objective without parameters or logits."""

    def apply(variables, carry, batch, key, *, train):
        return ObjectiveOut(jnp.mean(carry**2), {}, {"rms": jnp.sqrt(jnp.mean(carry**2))}, None)

    return LocalObjective(lambda key, carry, batch: {}, apply, no_sync)


def run(objective, variables=None, *, train=True):
    variables = objective.init(KEY, CARRY, BATCH) if variables is None else variables
    return objective.apply(variables, CARRY, BATCH, KEY, train=train)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: readout(Classifier(k)),
        lambda k: freeze(readout(Classifier(k))),
        lambda k: through(ConvUnit(k), readout(Classifier(k))),
        lambda k: weighted_sum(a=(0.5, readout(Classifier(k)))),
    ],
)
def test_equal_arguments_give_one_object(make):
    assert make(3) is make(3)
    assert make(4) is not make(3)


def test_the_default_loss_is_cross_entropy():
    assert readout(Classifier(3)) is readout(Classifier(3), losses.cross_entropy)


def test_readout_keeps_logits_in_float32():
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), dict(HEAD.init(KEY, CARRY, BATCH)))
    out = HEAD.apply(variables, CARRY.astype(jnp.bfloat16), BATCH, KEY, train=True)
    assert out.logits.dtype == out.loss.dtype == jnp.float32


def test_a_loss_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"one number per example, \[b\], but it has shape \[4, 3\]"):
        run(readout(Classifier(3), lambda logits, labels: logits))


def test_weighted_sum_adds_losses_and_gradients():
    total = weighted_sum(classify=(0.25, HEAD), activity=(2.0, activity()))
    variables = total.init(KEY, CARRY, BATCH)
    out = run(total, variables)
    head_loss = HEAD.apply(pick(variables, "classify"), CARRY, BATCH, KEY, train=True).loss
    np.testing.assert_allclose(out.loss, 0.25 * head_loss + 2 * jnp.mean(CARRY**2), rtol=1e-6)
    assert out.metrics.keys() == {"classify", "activity", "classify/accuracy", "activity/rms", "accuracy"}
    assert out.metrics["classify"] == head_loss
    assert out.logits.shape == (4, 3)


def test_weighted_sum_keeps_running_statistics_of_each_term():
    total = weighted_sum(a=(1.0, readout(ConvMlp(3))), b=(1.0, activity()))
    mutated = run(total).mutated
    assert mutated["batch_stats"].keys() == {"a"}


def test_weighted_sum_of_two_classifiers_exits_by_the_first():
    other = readout(ConvMlp(3))
    total = weighted_sum(a=(0.5, other), b=(0.5, HEAD))
    variables = total.init(KEY, CARRY, BATCH)
    expected = other.apply(pick(variables, "a"), CARRY, BATCH, KEY, train=True).logits
    np.testing.assert_allclose(run(total, variables).logits, expected, rtol=1e-5, atol=1e-5)


def test_weighted_sum_needs_a_term():
    with pytest.raises(ValueError, match="at least one term"):
        weighted_sum()


def test_freeze_moves_parameters_and_keeps_the_gradient_to_the_block():
    frozen = freeze(HEAD)
    variables = frozen.init(KEY, CARRY, BATCH)
    assert variables.keys() == {"fixed"}
    free = HEAD.init(KEY, CARRY, BATCH)
    np.testing.assert_array_equal(run(frozen, variables).loss, run(HEAD, free).loss)
    gradients = [
        jax.grad(lambda x, o=o, v=v: o.apply(v, x, BATCH, KEY, train=True).loss)(CARRY)
        for o, v in ((frozen, variables), (HEAD, free))
    ]
    chex.assert_trees_all_equal(*gradients)
    assert jnp.any(gradients[0] != 0)


def test_freezing_twice_is_freezing():
    variables = freeze(freeze(HEAD)).init(KEY, CARRY, BATCH)
    assert variables.keys() == {"fixed"}
    assert run(freeze(freeze(HEAD)), variables).logits.shape == (4, 3)


def test_through_adapts_and_syncs():
    def take_peer(variables, peer, *, start):
        return {**variables, "params": peer["unit_0"]}

    unit = ConvUnit(5, 2)
    objective = through(unit, HEAD, sync=take_peer)
    variables = objective.init(KEY, CARRY, BATCH)
    adapted, _ = unit.apply(pick(variables, "adapter"), CARRY, train=True, mutable=["batch_stats"])
    expected = HEAD.apply(pick(variables, "inner"), adapted, BATCH, KEY, train=True)
    out = run(objective, variables)
    np.testing.assert_allclose(out.loss, expected.loss, rtol=1e-5)
    assert out.mutated["batch_stats"].keys() == {"adapter"}
    peer = jax.tree.map(jnp.zeros_like, dict(variables["params"]["adapter"]))
    synced = objective.sync(variables, {"unit_0": peer}, start=False)
    chex.assert_trees_all_equal(synced["params"]["adapter"], peer)
    chex.assert_trees_all_equal(synced["params"]["inner"], variables["params"]["inner"])


def test_a_feature_objective_reads_the_batch_and_predicts_no_classes():
    objective = feature_objective(
        lambda batch: Classifier(len(batch.label)), lambda y, batch: jnp.sum(y, 1) * (batch.label > 0).astype(y.dtype)
    )
    variables = objective.init(KEY, CARRY, BATCH)
    out = run(objective, variables)
    assert out.logits is None
    assert out.metrics == {}
    features = Classifier(4).apply(variables, CARRY, train=True)
    np.testing.assert_allclose(
        out.loss, jnp.mean(jnp.sum(features, 1) * (BATCH.label > 0).astype(jnp.float32)), rtol=1e-5
    )


def test_pick_undoes_nest():
    a, b = {"params": 1, "batch_stats": 2}, {"params": 3}
    nested = nest(a=a, b=b)
    assert nested == {"params": {"a": 1, "b": 3}, "batch_stats": {"a": 2}}
    assert (pick(nested, "a"), pick(nested, "b")) == (a, b)
