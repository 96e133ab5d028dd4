"""What a language model writes: tokens, drawn one after the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlocal.block import Block, forward, run
from jaxlocal.feed import Feed
from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import CACHE, Key, Variables, caching, cast, cast_floating, merge

Cache = tuple[Any, ...]  # of each block, what its modules keep: keys, values, and the index of the next position
Draw = Callable[[Float[Array, "b k"], Key], Int[Array, "b"]]

HOTTEST = 1000.0  # of temperatures; then all tokens are as good as equally likely


def scores(
    blocks: Sequence[Block],
    feed: Feed,
    variables: Sequence[Variables],
    tokens: Int[Array, "b t"],
    cache: Cache | None = None,
    *,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "b t k"], Cache]:
    """What the last of the blocks thinks of the next token at every position, and the cache for those that follow.

    Beyond the context scores are NaN.

    Args:
      blocks: of the network, up to the exit that is read.
      feed: of the rule.
      variables: of each block.
      tokens: with a cache, those that come after what it has; without, a whole context: a cache has room for as many
        as came first.
      cache: of an earlier call.
      dtype: of the computation.

    Raises:
      ValueError: if the exit predicts no classes.
    """
    key = jax.random.key(0)  # nothing is drawn
    batch, caches = Batch(tokens, tokens), []
    carry: Carry = None
    with caching():
        for i, block in enumerate(blocks):
            own = merge(variables[i], {CACHE: cache[i]} if cache else {})
            carry = feed(i, carry, batch, key, train=False)
            if i < len(blocks) - 1:
                carry, mutated = forward(block, cast(own, dtype), cast_floating(carry, dtype), key, train=False)
            else:
                _, out = run(block, own, carry, batch, key, train=False, dtype=dtype)
                mutated = out.mutated
            caches.append(mutated.get(CACHE, {}))
    if out.logits is None:
        raise ValueError(f"the exit of block {len(blocks)} predicts no classes")
    return out.logits, tuple(caches)


def rewound(cache: Cache, length: Int[Array, ""] | int) -> Cache:
    """The cache as it was after so many tokens: what came after them is seen by no position, and overwritten."""

    def leaf(path: Any, x: Array) -> Array:
        return jnp.full_like(x, length) if path[-1] == jax.tree_util.DictKey("index") else x

    return jax.tree_util.tree_map_with_path(leaf, cache)


def sampler(num_classes: int, temperature: float = 1.0, top_k: int = 0) -> Draw:
    r"""Draws from :math:`\mathrm{softmax}(s / T)` over the :math:`k` highest scores.

    By the Gumbel-max trick: noise times the temperature is added to the scores, and the highest is taken. So at
    temperature 0 it is the likeliest token. Where a score is NaN, -1 is drawn.

    Args:
      num_classes: tokens of the vocabulary.
      temperature: T, 0 to 1000.
      top_k: k; 0 for all. What has the same score as the last of them stays in.

    Raises:
      ValueError: if one is out of range.
    """
    if not 0 <= temperature <= HOTTEST:
        raise ValueError(f"temperature {temperature}: choose 0, for the likeliest token each time, to {HOTTEST:g}")
    if not 0 <= top_k <= num_classes:
        raise ValueError(f"top_k {top_k}: choose 1 to {num_classes}, as many as there are tokens, or 0 for all")

    def draw(scores: Float[Array, "b k"], key: Key) -> Int[Array, "b"]:
        if top_k:
            least = jax.lax.top_k(scores, top_k)[0][:, -1:]
            scores = jnp.where(scores < least, -jnp.inf, scores)
        likely = jnp.argmax(scores + temperature * jax.random.gumbel(key, scores.shape, scores.dtype), axis=-1)
        return jnp.where(jnp.isnan(scores).any(-1), -1, likely)

    return draw


def continued(
    blocks: Sequence[Block],
    feed: Feed,
    variables: Sequence[Variables],
    prompt: Int[np.ndarray, "n"],
    key: Key,
    *,
    draw: Draw,
    context: int,
    dtype: Any = jnp.float32,
) -> Iterator[int]:
    """The tokens that follow a prompt, without end, each from the ``context`` tokens before it.

    As long as the text fits into the context, a step reads one token and finds the others in the cache. From then on
    the last ``context`` tokens are read anew for each: what moves by a position is another input, all the way up, so
    nothing that was kept is of use. Either is compiled once. Token n of the text follows from the tokens before it,
    ``fold_in(key, n)`` and nothing else.

    Args:
      blocks: of the network, up to the exit that is read.
      feed: of the rule.
      variables: of each block.
      prompt: what comes before, one token at least.
      key: to draw from.
      draw: as :func:`sampler` makes it.
      context: most tokens that the network reads.
      dtype: of the computation.

    Raises:
      ValueError: if the prompt is empty, or, as it goes, scores are NaN.
    """
    if not len(prompt):
        raise ValueError("the prompt is empty: give one token at least")

    @jax.jit
    def read(variables: Sequence[Variables], window: Array, length: Array, key: Key) -> tuple[Array, Cache]:
        found, cache = scores(blocks, feed, variables, window, dtype=dtype)
        return draw(found[:, length - 1], key), rewound(cache, length)

    @jax.jit
    def step(variables: Sequence[Variables], cache: Cache, token: Array, key: Key) -> tuple[Array, Cache]:
        found, cache = scores(blocks, feed, variables, token[:, None], cache, dtype=dtype)
        return draw(found[:, 0], key), cache

    def tokens() -> Iterator[int]:
        text, cache = [int(token) for token in prompt], None
        while True:
            now = jax.random.fold_in(key, len(text))
            if cache is None or len(text) > context:
                seen = text[-context:]
                window = jnp.array([seen + [0] * (context - len(seen))], jnp.int32)
                token, cache = read(variables, window, jnp.array(len(seen)), now)
            else:
                token, cache = step(variables, cache, jnp.array(text[-1:], jnp.int32), now)
            if token[0] < 0:
                raise ValueError("the network's scores are NaN: take a checkpoint from before it diverged")
            text.append(int(token[0]))
            yield text[-1]

    return tokens()
