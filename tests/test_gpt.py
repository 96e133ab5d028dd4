"""Transformers over tokens: what they are, that no position sees a later one, and that rules train them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Batch, Network, Task, cut_everywhere, fused, losses, make_blocks, models, rules
from jaxlocal.block import run
from jaxlocal.models.gpt import has_flash
from jaxlocal.variables import size
from tests import toy

TASK = Task(11, each=True)
OPTIONS = {"layers": 3, "heads": 2, "features": 16, "context": 8, "vocabulary": 11}
RULES = {
    "backprop": rules.backprop(),
    "remat": rules.remat(rules.backprop()),
    "greedy": rules.greedy(),
    "dgl": rules.dgl(),
    "auglocal": rules.auglocal(depth=1),
    "man": rules.man(rules.dgl()),
    "dfa": rules.dfa(),
    "deep_supervision": rules.deep_supervision(rules.greedy()),
    "several tokens": rules.greedy(tokens=3),
    "adapt": rules.adapt(rules.greedy()),
    "lopt": rules.lopt(),
    "shared": rules.shared(rules.dgl()),
}


def batch_of(n: int = 4, seed: int = 0) -> Batch:
    tokens = jax.random.randint(jax.random.key(seed), (n, 9), 0, 11)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def made(rule, **options):
    units = models.gpt(**{**OPTIONS, **options})
    network, local = rule(Network(units, cut_everywhere(units)), TASK)
    blocks = make_blocks(network, local)
    executor = fused(blocks, local.feed, toy.OPTIMIZER)
    return network, blocks, local.feed, executor, executor.init(jax.random.key(0), batch_of())


@pytest.mark.parametrize("options", [{}, {"norm": "rms", "gated": True, "rotary": True}], ids=["gpt", "llama"])
@pytest.mark.parametrize("rule", RULES)
def test_no_position_of_any_head_sees_a_later_one(rule, options):
    """Changing the last token changes outputs and scores at no position before it, at any exit."""
    _, blocks, feed, _, state = made(RULES[rule], **options)
    batch = batch_of()
    other = batch._replace(input=batch.input.at[:, -1].set((batch.input[:, -1] + 1) % 11))
    carries = [None, None]
    for i, (block, of) in enumerate(zip(blocks, state.blocks, strict=True)):
        seen = []
        for k, given in enumerate((batch, other)):
            carry = feed(i, carries[k], given, jax.random.key(0), train=False)
            carries[k], out = run(block, of.variables, carry, given, jax.random.key(0), train=False, dtype=jnp.float32)
            assert out.logits is None if rule == "lopt" and block is not blocks[-1] else out.logits.shape == (4, 8, 11)
            seen.append(jax.tree.leaves((carries[k], out.logits)))
        for a, b in zip(*seen, strict=True):
            np.testing.assert_array_equal(a[:, :-1], b[:, :-1])
            assert (a[:, -1] != b[:, -1]).any()


@pytest.mark.parametrize("rule", RULES)
def test_every_exit_learns_to_tell_the_next_token(rule):
    """Of one batch, seen again and again, if it tells any."""
    *_, executor, state = made(RULES[rule])
    first = None
    for _ in range(60):
        state, metrics = executor.step(state, batch_of())
        now = np.array([block["loss"] for block in metrics if "accuracy" in block])
        first = now if first is None else first
    assert (now < first - 0.2).all()


def test_parameters_are_gpt_2s():
    """12 f^2 a layer and two norms; embeddings apart."""
    _, _, _, _, state = made(rules.backprop())
    f, layers, vocabulary, context = 16, 3, 11, 8
    counted = layers * (12 * f * f + 2 * f) + (vocabulary + context) * f + f + f * vocabulary
    assert size(state.blocks[0].variables["params"]) == counted


def test_a_loss_is_the_mean_over_positions():
    logits, labels = jax.random.normal(jax.random.key(0), (3, 5, 7)), jnp.arange(15).reshape(3, 5) % 7

    expected = [
        np.mean([losses.cross_entropy(logits[i, j][None], labels[i, j][None])[0] for j in range(5)]) for i in range(3)
    ]
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("rule", [rules.predsim(), rules.infopro(), rules.tpsgd(), rules.drtp()])
def test_rules_that_know_no_positions_refuse(rule):
    units = models.gpt(**OPTIONS)
    with pytest.raises(ValueError, match="gives one answer an example"):
        rule(Network(units, cut_everywhere(units)), TASK)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "features that the heads divide"),
        ({"norm": "batch"}, "choose layer or rms"),
        ({"features": 6, "heads": 2, "rotary": True}, "rotary turns pairs"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_what_makes_no_transformer(options, words):
    with pytest.raises(ValueError, match=words):
        models.gpt(**{**OPTIONS, **options})


def test_heads_of_tokens_take_no_limit_of_features():
    with pytest.raises(ValueError, match="most is for heads of images"):
        made(rules.dgl(most=8))


def test_more_tokens_than_the_context_are_refused():
    embedding, *_ = models.gpt(**OPTIONS)
    with pytest.raises(ValueError, match="9 tokens for a context of 8"):
        embedding.init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32), train=False)


def test_several_tokens_are_told_by_heads_of_their_own():
    """The loss is the mean of their losses; the accuracy is that of the next one."""
    *_, executor, state = made(rules.greedy(tokens=2))
    first, *_, last = executor.evaluate(state, batch_of())
    np.testing.assert_allclose(first["loss"], (first["token_1"] + first["token_2"]) / 2, rtol=1e-6)
    assert first["accuracy"] == first["token_1/accuracy"] != first["token_2/accuracy"]
    assert "token_1" not in last
    assert size(state.blocks[0].variables["params"]["head"]) == 2 * (16 + 16 * 11)


@pytest.mark.parametrize("tokens", [0, 9])
def test_tokens_that_are_not_there(tokens):
    with pytest.raises(ValueError, match="tokens 0 given" if tokens == 0 else "tokens 9 positions ahead"):
        made(rules.greedy(tokens=tokens))[3].evaluate(made(rules.greedy(tokens=tokens))[4], batch_of())


@pytest.mark.parametrize(
    ("capability", "dtype", "features", "expected"),
    [
        ("9.0", jnp.bfloat16, 64, True),
        ("10.0", jnp.float16, 128, True),
        ("7.5", jnp.bfloat16, 64, False),
        ("gfx942", jnp.bfloat16, 64, False),
        ("9.0", jnp.float32, 64, False),
        ("9.0", jnp.bfloat16, 20, False),
        ("9.0", jnp.bfloat16, 256, False),
        ("", jnp.bfloat16, 64, False),
    ],
)
def test_where_flash_attention_can_be_had(monkeypatch, capability, dtype, features, expected):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert has_flash(dtype, features) is expected
