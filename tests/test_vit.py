"""Vision transformers: what they are, what their heads read, and that every rule of images trains them."""

from functools import cache

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Network, Task, cut_everywhere, fused, make_blocks, models, rules
from jaxlocal.heads import Unembedding, classifier, output_of
from jaxlocal.rules.auglocal import auxiliary_head
from jaxlocal.variables import cast_floating, init_module, size
from tests import toy
from tests.test_contract import updated

KEY = jax.random.key(0)
RULES = {
    "backprop": rules.backprop(),
    "remat": rules.remat(rules.greedy()),
    "greedy": rules.greedy(),
    "dgl": rules.dgl(),
    "mono_forward": rules.mono_forward(),
    "auglocal": rules.auglocal(depth=1),
    "predsim": rules.predsim(),
    "infopro": rules.infopro(),
    "man": rules.man(rules.dgl()),
    "lopt": rules.lopt(),
    "shared": rules.shared(rules.greedy()),
    "adapt": rules.adapt(rules.greedy()),
    "tpsgd": rules.tpsgd(),
    "drtp": rules.drtp(),
    "dfa": rules.dfa(),
    "deep_supervision": rules.deep_supervision(rules.dgl()),
}


def noise(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


@cache
def built(rule: str):
    units = models.vit(2, 3, 2, 8, bias=True)
    network, local = RULES[rule](Network(units, cut_everywhere(units)), Task(10))
    blocks = make_blocks(network, local)
    executor = fused(blocks, local.feed, toy.OPTIMIZER)
    return blocks, executor, executor.init(KEY, toy.digits())


def test_every_rule_is_here():
    """But for NoProp and Forward-Forward, which have networks of their own."""
    assert {name for name in rules.__all__ if "noprop" not in name and name != "forward_forward"} == set(RULES)


SLOW = ("man", "infopro", "predsim", "dfa")  # to compile
over_rules = pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[pytest.mark.slow] * (rule in SLOW)) for rule in RULES]
)


@over_rules
def test_every_rule_trains_it(rule):
    """The loss of every block falls, on digits in 4x4 patches; LoPT's lower blocks have targets that change.

    On a residual stream DRTP's has no bottom, so few steps; tpSGD's later blocks start late.
    """
    _, executor, state = built(rule)
    state, first = executor.step(toy.copy(state), toy.digits())
    for _ in range({"drtp": 10, "tpsgd": 100}.get(rule, 30)):
        state, last = executor.step(state, toy.digits())
    chex.assert_tree_all_finite((state.blocks, last))
    for before, after in zip(first, last, strict=True):
        if rule != "lopt" or "accuracy" in after:
            assert after["loss"] < before["loss"] - 0.01 * abs(before["loss"])


@over_rules
def test_a_later_block_never_changes_an_earlier_update(rule):
    blocks, executor, state = built(rule)
    clean, _ = executor.step(toy.copy(state), toy.digits())
    for j in range(1, len(blocks)):
        other = list(toy.copy(state).blocks)
        other[j] = jax.tree.map(lambda x: x + jnp.ones_like(x), other[j])
        perturbed, _ = executor.step(toy.copy(state).replace(blocks=tuple(other)), toy.digits())
        chex.assert_trees_all_equal(updated(perturbed.blocks[:j]), updated(clean.blocks[:j]))
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal(perturbed.blocks[j], clean.blocks[j])


@pytest.mark.parametrize(
    ("layers", "heads", "features", "published"), [(12, 6, 384, 22_050_664), (12, 12, 768, 86_567_656)]
)
def test_it_has_the_size_of_those_of_1000_classes(layers, heads, features, published):
    """ViT-S/16 and ViT-B/16 at 224 pixels (Touvron et al. 2021), less the class token, its position and two biases."""
    units = models.vit(16, layers, heads, features, bias=True)

    def trace():
        x, params = jnp.zeros((1, 224, 224, 3)), []
        for unit in (*units, output_of(units, Task(1000))):
            x, variables = init_module(unit, KEY, x)
            params.append(variables["params"])
        return params

    assert size(jax.eval_shape(trace)) == published - 3 * features - 1000


def test_a_patch_is_embedded_by_its_pixels_and_its_place():
    image, (patches, *_) = noise(2, 6, 9, 4), models.vit(3, 1, 1, 5)
    out, variables = init_module(patches, KEY, image)
    assert out.shape == (2, 2, 3, 5)
    params = variables["params"]
    kernel = params["patches"]["kernel"].reshape(3, 3, 4, 5)
    for i, j in np.ndindex(2, 3):
        pixels = image[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
        expected = jnp.einsum("bhwc,hwcf->bf", pixels, kernel) + params["positions"][i, j]
        np.testing.assert_allclose(out[:, i, j], expected, rtol=1e-5, atol=1e-6)


def test_a_layer_sees_the_patches_of_a_grid_as_a_set():
    """In another order they come out in that order, from another grid alike: nothing is causal."""
    layer, x = models.vit(2, 1, 2, 8)[1], noise(2, 3, 4, 8)
    y, variables = init_module(layer, KEY, x)
    assert y.shape == x.shape
    order = np.random.default_rng(0).permutation(12)
    flat, out = x.reshape(2, 12, 8), y.reshape(2, 12, 8)
    np.testing.assert_allclose(layer.apply(variables, flat, train=False), out, rtol=1e-5, atol=1e-6)
    shuffled = layer.apply(variables, flat[:, order].reshape(2, 4, 3, 8), train=False)
    np.testing.assert_allclose(shuffled.reshape(2, 12, 8), out[:, order], rtol=1e-5, atol=1e-6)
    changed = layer.apply(variables, x.at[:, -1, -1].set(noise(2, 8)), train=False)
    assert (changed[:, 0, 0] != y[:, 0, 0]).all()


def test_the_plain_head_averages_what_the_norm_puts_out():
    """Norm, global average pool, dense (Beyer et al. 2022); no position comes before another."""
    units, x = models.vit(2, 1, 2, 8, bias=True), noise(2, 3, 4, 8)
    head = classifier(units, Task(10))
    assert head == Unembedding(10, "layer", bias=True, each=False)
    scores, variables = init_module(head, KEY, x)
    norm = nn.LayerNorm(epsilon=1e-5).apply({"params": variables["params"]["norm"]}, x)
    expected = norm.mean((1, 2)) @ variables["params"]["dense"]["kernel"]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert scores.shape == (2, 10)


def test_auglocals_heads_are_later_layers():
    units = models.vit(2, 4, 2, 8)
    head = auxiliary_head(Network(units, cut_everywhere(units)), 0, 2, Task(10))
    assert head.units == (units[2], units[4])
    assert head.output == classifier(units, Task(10))


def test_gradients_of_positions_are_summed_in_float32():
    """They are sums over the batch, which bfloat16 gives up at 256."""
    patches, image = models.vit(1, 1, 1, 2)[0], jnp.ones((1024, 1, 1, 1))
    params, half = cast_floating((init_module(patches, KEY, image)[1]["params"], image), jnp.bfloat16)

    def total(params):
        return jnp.sum(patches.apply({"params": params}, half, train=True), dtype=jnp.float32)

    np.testing.assert_array_equal(jax.grad(total)(params)["positions"].astype(jnp.float32), 1024)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "features that the heads divide"),
        ({"patch": 0}, "patch 0"),
        ({"layers": 0}, "layers 0"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_what_makes_no_transformer(options, words):
    with pytest.raises(ValueError, match=words):
        models.vit(**options)


@pytest.mark.parametrize("shape", [(32, 30), (30, 32)])
def test_images_that_patches_do_not_divide(shape):
    with pytest.raises(ValueError, match=rf"{shape[0]}x{shape[1]} pixels in patches of 4x4: choose a patch"):
        init_module(models.vit()[0], KEY, jnp.zeros((1, *shape, 3)))


def test_copies_of_layers_at_another_width_are_refused():
    units = models.vit(2, 4, 2, 8)
    with pytest.raises(ValueError, match="Layer, which has no field `features`"):
        auxiliary_head(Network(units, cut_everywhere(units)), 0, 2, Task(10), width=0.5)


def test_a_head_with_a_bias_is_no_unembedding():
    """DGL's, on a grid, is not read as the network's end."""
    units = models.vit(2, 2, 2, 8)
    network, local = rules.shared(rules.dgl())(Network(units, cut_everywhere(units)), Task(10))
    executor = fused(make_blocks(network, local), local.feed, toy.OPTIMIZER)
    with pytest.raises(ValueError, match="a head with one unembedding is needed"):
        executor.init(KEY, toy.digits())
