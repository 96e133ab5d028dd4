"""Heads without an unembedding of their own: tied to the embedding, or following the last block's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import common
from experiments.cost.compiled import unit_costs
from experiments.cost.search import cutter_of
from experiments.pages.network import blocks_of
from experiments.recipe.build import build
from jaxlocal import Network, fused, make_blocks, models, rules, streamed
from jaxlocal.block import gradients
from jaxlocal.executors import OneDevice, pipelined
from tests import toy
from tests.test_gpt import OPTIONS, TASK, batch_of, made

FOLLOWERS = {
    "greedy": rules.shared(rules.greedy()),
    "dgl": rules.shared(rules.dgl(), decay=0.5),
    "auglocal": rules.shared(rules.auglocal(depth=1)),
}
followers = pytest.mark.parametrize("rule", FOLLOWERS)


def tables(tree) -> list[jax.Array]:
    return [x for path, x in jax.tree.leaves_with_path(tree) if "'dense'" in jax.tree_util.keystr(path)]


def test_a_tied_network_has_one_table():
    *_, tied = made(rules.backprop(), tied=True)
    *_, own = made(rules.backprop())
    assert not tables(tied.blocks[0].variables)
    head = own.blocks[0].variables["params"].pop("head")
    own.blocks[0].variables["params"]["head"] = {"norm": head["norm"]}
    chex.assert_trees_all_equal(tied.blocks[0].variables, own.blocks[0].variables)


def test_a_tied_table_has_both_gradients():
    """That of the embedding and, turned round, that of the unembedding of an untied network with the same numbers."""
    batch, key = batch_of(), jax.random.key(1)
    _, (block,), _, _, tied = made(rules.backprop(), tied=True)
    _, (untied_block,), *_ = made(rules.backprop())
    variables = tied.blocks[0].variables
    table = variables["params"]["unit_0"]["tokens"]
    head = {**variables["params"]["head"], "dense": {"kernel": table.T}}
    untied = {**variables, "params": {**variables["params"], "head": head}}
    found, _, out = gradients(block, variables, batch.input, batch, key, dtype=jnp.float32)
    parts, _, expected = gradients(untied_block, untied, batch.input, batch, key, dtype=jnp.float32)
    np.testing.assert_allclose(out.loss, expected.loss, rtol=1e-6)
    both = parts["unit_0"]["tokens"] + parts["head"]["dense"]["kernel"].T
    np.testing.assert_allclose(found["unit_0"]["tokens"], both, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [rules.greedy(), rules.dfa()], ids=["greedy", "dfa"])
def test_a_cut_breaks_the_tie(rule):
    *_, state = made(rule, tied=True)
    assert all(tables(block.variables["params"].get("head", {})) for block in state.blocks)


def test_a_tie_goes_through_combinators():
    """Under deep supervision the output is one term of a sum, behind an adapter."""
    units = models.gpt(**OPTIONS, tied=True)
    network, local = rules.deep_supervision(rules.backprop())(Network(units), TASK)
    (block,) = make_blocks(network, local)
    *_, state = made(rules.deep_supervision(rules.backprop()), tied=True)
    gradient, *_ = gradients(
        block, state.blocks[0].variables, batch_of().input, batch_of(), jax.random.key(0), dtype=jnp.float32
    )
    assert not tables(gradient)
    assert jnp.all(jnp.any(gradient["unit_0"]["unit"]["tokens"] != 0, axis=1))  # tokens that were not read, too


@followers
def test_followers_have_no_table_to_train(rule):
    _, blocks, _, _, state = made(FOLLOWERS[rule])
    for block, of in zip(blocks[:-1], state.blocks[:-1], strict=True):
        assert not tables(of.variables["params"])
        assert not tables(of.opt_state)
        assert [x.shape for x in tables(of.variables["ema"])] == [(16, 11)]
        assert block.objective.peer == "last"
    assert tables(state.blocks[-1].variables["params"])


@followers
def test_followers_read_the_last_table_as_it_was_before_the_step(rule):
    *_, executor, state = made(FOLLOWERS[rule])
    decay = 0.5 if rule == "dgl" else 0.0
    for _ in range(2):
        before = toy.copy(state)
        state, _ = executor.step(state, batch_of())
        (last,) = tables(before.blocks[-1].variables["params"])
        for old, new in zip(before.blocks[:-1], state.blocks[:-1], strict=True):
            (was,), (now,) = tables(old.variables["ema"]), tables(new.variables["ema"])
            np.testing.assert_allclose(now, decay * was + (1 - decay) * last, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["auglocal", "greedy", "dgl"])
def test_executors_agree(rule):
    """One program, one of each block, states in host memory, and stages on devices of their own."""
    _, blocks, feed, executor, _ = made(FOLLOWERS[rule])
    placements = [OneDevice(device) for device in jax.devices()[:2]]
    others = {
        "streamed": streamed(blocks, feed, toy.OPTIMIZER),
        "offload": streamed(blocks, feed, toy.OPTIMIZER, offload=True),
        "pipelined": pipelined(blocks, feed, toy.OPTIMIZER, placements=placements, starts=[len(blocks) - 1]),
        "cut early": pipelined(blocks, feed, toy.OPTIMIZER, placements=placements, starts=[1]),
    }
    results = {}
    for name, of in {"fused": executor, **others}.items():
        state = of.init(jax.random.key(0), batch_of())
        for i in range(3):
            state, metrics = of.step(state, batch_of(seed=i))
        results[name] = jax.device_get((state.blocks, metrics, of.evaluate(state, batch_of())))
    for name in others:
        chex.assert_trees_all_close(results[name], results["fused"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda: rules.shared(rules.greedy(), decay=1.0), "below 1"),
        (lambda: rules.shared(rules.greedy(), decay=0.5, half=True), "half with decay 0.5"),
        (lambda: made(rules.shared(rules.man(rules.greedy()))), "cannot go around a rule that follows"),
        (lambda: made(rules.man(rules.shared(rules.greedy()))), "man goes around"),
        (lambda: made(rules.deep_supervision(rules.shared(rules.greedy()))), "cannot go around"),
        (lambda: toy.make(rules.shared(rules.greedy())), "this network ends otherwise"),
    ],
)
def test_what_cannot_follow(rule, words):
    with pytest.raises(ValueError, match=words):
        rule()


def test_a_tied_network_is_shown_and_planned():
    """Its head owns a norm alone; a unit as a block of its own is not tied."""
    config = common.shakespeare()
    config.model.layers, config.model.features, config.model.tied, config.batch_size = 1, 16, True, 2
    config.optimizer, config.schedule = common.digits().optimizer, "constant"
    experiment = build(config)
    (block,) = blocks_of(experiment)
    assert [part.parameters for part in block.units] == [(65 + 64) * 16, 12 * 16**2 + 2 * 16]
    assert [[(part.kind, part.output) for part in head] for head in block.heads] == [
        [("LayerNorm", "64x16"), ("Scored", "64x65")]
    ]
    costs = unit_costs(*cutter_of(config, experiment.dataset))
    assert [cost.head > 0 for cost in costs] == [True, True]


def test_a_table_in_half_precision_changes_a_step_in_it_by_no_more_than_rounding():
    """Heads of such a step read it in bfloat16 however it is kept, but for what the compiler does not round."""
    results = []
    for half in (False, True):
        _, blocks, feed, *_ = made(rules.shared(rules.greedy(), half=half))
        executor = fused(blocks, feed, toy.OPTIMIZER, dtype=jnp.bfloat16)
        state = executor.init(jax.random.key(0), batch_of())
        with jax.numpy_dtype_promotion("standard"):  # Flax's layer norm mixes bfloat16 with float32
            for seed in range(3):
                state, _ = executor.step(state, batch_of(seed=seed))
        assert [x.dtype for x in tables(state.blocks[0].variables["ema"])] == [jnp.bfloat16 if half else jnp.float32]
        results.append([block.variables["params"] for block in state.blocks])
    whole, kept_in_half = results
    begun = [block.variables["params"] for block in made(rules.shared(rules.greedy()))[-1].blocks]
    for start, a, b in zip(*map(jax.tree.leaves, (begun, whole, kept_in_half)), strict=True):
        largest = np.abs(a - start).max()  # of what three steps changed; bfloat16 tells 1 / 256 of a number
        np.testing.assert_allclose(a, b, rtol=0, atol=2 / 256 * largest)
