"""Sampling: a cache changes no score, what is drawn is drawn as it should be, and the program says what is wrong."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.recipe.build import build
from experiments.training.trained import Trained, restore
from experiments.training.writing import pieces, write
from jaxlocal import Batch, models, rules, sampling
from jaxlocal.block import run
from jaxlocal.variables import CACHE, caching
from tests.programs import assert_one_line_error, program, train
from tests.test_gpt import OPTIONS, RULES, batch_of, made

LLAMA = {"norm": "rms", "gated": True, "rotary": True, "bias": True}
CASES = {
    **{rule: (rule, {}) for rule in RULES if rule != "backprop"},  # exits as greedy's
    "man, several tokens": (rules.man(rules.dgl(tokens=2)), {}),
    "greedy, biased": ("greedy", {"bias": True}),
    **{f"{rule}, llama": (rule, LLAMA) for rule in ("dgl", "auglocal", "man")},
}
FLOAT32 = {"atol": 5e-6, "rtol": 1e-5}  # of scores around 1; sums are taken in another order
GREEDY = sampling.sampler(11, 0.0)


def trained(rule, **options):
    """Weights large enough for attention to choose, and biases and averages that differ from all others."""
    _, blocks, feed, _, state = made(rule, layers=2, **options)

    def moved(path, x):
        noise = np.random.default_rng(len(str(path))).normal(size=x.shape)
        return x if x.dtype != jnp.float32 else x + jnp.asarray(0.3 * noise, jnp.float32)

    return blocks, feed, [jax.tree_util.tree_map_with_path(moved, block.variables) for block in state.blocks]


def plain(blocks, feed, variables):
    """Tokens to scores of each exit: a forward pass that knows of no cache."""

    @jax.jit
    def forward(tokens):
        batch, carry, key, exits = Batch(tokens, tokens), None, jax.random.key(0), []
        for i, (block, own) in enumerate(zip(blocks, variables, strict=True)):
            carry = feed(i, carry, batch, key, train=False)
            carry, out = run(block, own, carry, batch, key, train=False, dtype=jnp.float32)
            assert CACHE not in out.mutated
            exits.append(out.logits)
        return exits

    return forward


@pytest.mark.parametrize(("rule", "options"), CASES.values(), ids=CASES)
def test_a_cache_changes_no_score_of_any_exit(rule, options):
    """Five tokens one by one behind a window of three, whose other places held something else."""
    blocks, feed, variables = trained(RULES.get(rule, rule), **options)
    tokens = batch_of().input
    for i, expected in enumerate(plain(blocks, feed, variables)(tokens), 1):
        if expected is None:
            with pytest.raises(ValueError, match=f"block {i} predicts no classes"):
                sampling.scores(blocks[:i], feed, variables, tokens)
            continue
        assert np.std(expected) > 0.5
        scores = jax.jit(partial(sampling.scores, blocks[:i], feed))
        got, cache = scores(variables, tokens.at[:, 3:].set(7))
        np.testing.assert_allclose(got[:, :3], expected[:, :3], **FLOAT32)
        cache = sampling.rewound(cache, 3)
        for t in range(3, 8):
            got, new = scores(variables, tokens[:, t : t + 1], cache)
            np.testing.assert_allclose(got[:, 0], expected[:, t], **FLOAT32)
            chex.assert_trees_all_equal_shapes_and_dtypes(new, cache)
            cache = new


def test_layers_of_heads_keep_caches_of_their_own():
    """Index, keys and values: of the block's layer, and MAN's two. A head that is not asked has none."""
    blocks, feed, variables = trained(rules.man(rules.greedy()))
    _, cache = sampling.scores(blocks[:2], feed, variables, batch_of().input)
    assert set(cache[1]["head"]["adapter"]) == {"unit", "average"}
    chex.assert_shape(cache[1]["head"]["adapter"]["average"]["key"], (4, 8, 2, 8))
    assert [len(jax.tree.leaves(kept)) for kept in cache] == [1, 3 + 6]


def test_beyond_the_context_there_is_no_number():
    blocks, feed, variables = trained(rules.backprop())
    _, cache = sampling.scores(blocks, feed, variables, batch_of().input)
    found, _ = sampling.scores(blocks, feed, variables, batch_of().input[:, :1], cache)
    assert jnp.isnan(found).all()


def test_what_sees_later_positions_has_no_cache():
    layer = models.Layer(2, 1, causal=False)
    x = jnp.ones((1, 3, 8))
    variables = layer.init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="not causal cannot go on from a cache"):
        layer.apply(variables, x, train=False, mutable=[CACHE])


@pytest.mark.parametrize("rule", ["greedy", "auglocal", "man"])
def test_each_token_follows_from_the_last_ones_that_the_context_holds(rule):
    """As nanoGPT samples: the text, cut to its end, read anew for each token. Prompts shorter and longer than that."""
    blocks, feed, variables = trained(RULES[rule], rotary=True)
    draw, key, exits = sampling.sampler(11, 0.7, 5), jax.random.key(3), plain(blocks, feed, variables)
    for prompt in ([4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1]):
        text = list(prompt)
        for _ in range(12):
            seen = text[-8:]
            scores = exits(jnp.array([seen + [7] * (8 - len(seen))]))[-1][:, len(seen) - 1]
            text.append(int(draw(scores, jax.random.fold_in(key, len(text)))[0]))
        tokens = sampling.continued(blocks, feed, variables, np.array(prompt), key, draw=draw, context=8)
        assert list(itertools.islice(tokens, 12)) == text[len(prompt) :]


def test_a_window_and_a_step_are_compiled_once_each():
    blocks, feed, variables = trained(rules.greedy())
    traced = []

    def draw(scores, key):
        traced.append(scores.shape)
        return GREEDY(scores, key)

    tokens = sampling.continued(blocks, feed, variables, np.array([1, 2]), jax.random.key(0), draw=draw, context=8)
    list(itertools.islice(tokens, 15))
    assert traced == [(1, 11)] * 2


def test_tokens_are_drawn_as_often_as_they_are_likely():
    scores = jnp.array([0.0, 1.0, 2.0, -1.0, 0.5])
    keys = jax.random.split(jax.random.key(0), 20_000)

    def often(**options):
        draw = sampling.sampler(5, **options)
        return np.bincount(jax.vmap(lambda key: draw(scores[None], key)[0])(keys), minlength=5) / len(keys)

    np.testing.assert_allclose(often(), jax.nn.softmax(scores), atol=0.015)
    np.testing.assert_allclose(often(temperature=2.5), jax.nn.softmax(scores / 2.5), atol=0.015)
    likeliest = jnp.where(jnp.array([False, True, True, False, False]), scores, -jnp.inf)
    np.testing.assert_allclose(often(temperature=0.5, top_k=2), jax.nn.softmax(likeliest / 0.5), atol=0.015)
    np.testing.assert_array_equal(often(temperature=0.0), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(often(top_k=1), [0, 0, 1, 0, 0])


def test_a_state_holds_no_cache_and_an_evaluation_begins_none():
    _, blocks, _, executor, state = made(RULES["man"])
    assert all(CACHE not in block.variables for block in state.blocks)
    layer = models.gpt(**OPTIONS)[1]
    assert layer.init(jax.random.key(0), jnp.ones((1, 3, 16)), train=False).keys() == {"params"}
    with caching():  # nor does training
        state, _ = executor.step(state, batch_of())
    assert all(CACHE not in block.variables for block in state.blocks)
    assert len(blocks) == 4


def shakespeare(**changes) -> ConfigDict:
    config = common.shakespeare()
    config.model.update({"layers": 2, "heads": 2, "features": 16, "context": 8})
    config.rule, config.optimizer = ConfigDict({"name": "greedy"}), common.digits().optimizer
    config.cuts = "2"
    config.duration = config.eval_every = config.log_every = "2 steps"
    config.schedule, config.warmup_steps, config.eval_examples = "constant", 0, 64
    return ConfigDict({**config.to_dict(), **changes})


@pytest.fixture(scope="module")
def of_text():
    experiment = build(shakespeare())
    return Trained(experiment, 0, experiment.init())


OF = {"exit_": None, "temperature": 1.0, "top_k": 0, "seed": 0}


@pytest.mark.slow
def test_a_run_writes_what_its_exits_would(tmp_path):
    """Through the program: the last exit, and another one."""
    workdir = tmp_path / "run"
    train(shakespeare(), workdir)
    given = ["--prompt=ROMEO: I", "--length=12", "--temperature=0.5", "--top_k=20", "--seed=4"]
    options = {**OF, "temperature": 0.5, "top_k": 20, "seed": 4}
    run_ = restore(workdir)
    texts = []
    for exit_, flag in ((None, []), (1, ["--exit=1"])):
        done = program("generate", f"--workdir={workdir}", *given, *flag)
        assert done.returncode == 0, done.stderr
        expected = "".join(write(run_, "ROMEO: I", 12, **{**options, "exit_": exit_}))
        assert len(expected) == 12
        assert done.stdout == f"ROMEO: I{expected}\n"
        texts.append(expected)
    assert texts[0] != texts[1]
    assert_one_line_error(program("generate", f"--workdir={workdir}", "--prompt="), "--prompt is needed")


def test_an_exit_that_tells_several_tokens_writes_by_the_next_one():
    """As long as it fits into the context, and beyond: what the exit of the first head alone writes."""
    experiment = build(shakespeare(rule={"name": "greedy", "tokens": 2}))
    run_ = Trained(experiment, 0, experiment.init())
    (block, *_), (plain_block, *_) = run_.experiment.blocks, build(shakespeare()).blocks
    own = run_.state.blocks[0].variables
    head = {c: {**tree, "head": tree["head"]["token_1"]} for c, tree in own.items() if "head" in tree}
    draw, prompt = sampling.sampler(65, 0.5), experiment.dataset.encode("ROMEO")
    alone = sampling.continued(
        [plain_block], experiment.feed, [{**own, **head}], prompt, jax.random.key(0), draw=draw, context=8
    )
    expected = experiment.dataset.decode(np.array(list(itertools.islice(alone, 12))))
    assert "".join(write(run_, "ROMEO", 12, **{**OF, "exit_": 1, "temperature": 0.5})) == expected
    assert block.objective != plain_block.objective


@pytest.mark.parametrize(
    ("prompt", "changes", "words"),
    [
        ("", {}, "the prompt is empty: give one token"),
        ("smörgås", {}, "the character 'å' is none of the 65"),
        ("a", {"exit_": 3}, "exit 3: choose 1 to 2"),
        ("a", {"exit_": 0}, "exit 0: choose 1 to 2"),
        ("a", {"temperature": -1.0}, "temperature -1.0: choose 0, for the likeliest"),
        ("a", {"temperature": float("nan")}, "temperature nan: choose"),
        ("a", {"temperature": float("inf")}, "temperature inf: choose"),
        ("a", {"top_k": 66}, "top_k 66: choose 1 to 65"),
        ("a", {"top_k": -1}, "top_k -1: choose 1 to 65"),
    ],
)
def test_what_cannot_be_written_is_one_line(of_text, prompt, changes, words):
    with pytest.raises(UserError, match=words):
        write(of_text, prompt, 1, **{**OF, **changes})


def test_a_run_on_images_writes_nothing():
    experiment = build(common.finish(common.digits(), "smoke"))
    with pytest.raises(UserError, match="a run on digits writes no text"):
        write(Trained(experiment, 0, experiment.init()), "a", 1, **OF)


def test_what_the_network_does_not_know_and_what_has_no_text(of_text):
    """A tokenizer may have more tokens than the network, or fewer; and a run may have diverged."""

    class Odd:
        def encode(self, text):
            return np.array([3, 70])

        def decode(self, tokens):
            raise ValueError(f"token {tokens[0]} is none of the vocabulary")

    odd = of_text._replace(experiment=of_text.experiment._replace(dataset=Odd()))
    with pytest.raises(UserError, match="prompt: token 70 is none of the network's 65"):
        write(odd, "a", 1, **OF)
    with pytest.raises(UserError, match="text: token 64 is none of the vocabulary"):
        list(pieces([64], Odd().decode))
    diverged = of_text._replace(state=jax.tree.map(lambda x: x if x.ndim < 2 else x * jnp.nan, of_text.state))
    with pytest.raises(UserError, match="text: the network's scores are NaN"):
        list(write(diverged, "a", 1, **OF))


@pytest.mark.parametrize("text", ["plain", "für 問題 🙂.", "🙂"])
def test_characters_of_several_tokens_come_whole(text):
    """Tokens that are bytes; and where the last character is not all there."""

    def decode(tokens):
        return bytes(tokens.tolist()).decode(errors="replace")

    found = list(pieces(text.encode(), decode))
    assert found == list(text)
    assert "".join(pieces(b"\xff\xfe\xfd\xfc\xfbok" + "é".encode()[:1], decode)) == "\ufffd" * 5 + "ok\ufffd"
