"""Language models: stacks of transformer layers over tokens (GPT-2 as nanoGPT builds it; Llama-like by options)."""

import functools
import math
import re
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from jaxlocal.layers import EPSILON, Biased, normed
from jaxlocal.target import target
from jaxlocal.variables import CACHE, is_caching

DEVIATION = 0.02  # of all initial weights; residual projections have less


class Embedding(nn.Module):
    """What a token is, and where it stands.

    Attributes:
      vocabulary: number of tokens.
      features: of what it puts out.
      context: most positions.
      learned: whether positions have features of their own; else layers turn by them.
      dropout: rate.
      tied: whether the network's output reads the same table, where no cut is between them.
    """

    vocabulary: int
    features: int
    context: int
    learned: bool = True
    dropout: float = 0.0
    tied: bool = False

    @nn.compact
    def __call__(self, tokens: Int[Array, "b t"], *, train: bool) -> Float[Array, "b t f"]:
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"{length} tokens for a context of {self.context}: give fewer, or a model of a longer one")
        init = initializers.normal(DEVIATION)
        x = self.param("tokens", init, (self.vocabulary, self.features))[tokens]
        at = positions(self, length)
        if self.learned:
            x += self.param("positions", init, (self.context, self.features))[slice(length) if at is None else at]
        if at is not None:  # there is no place for what comes after the context
            x = jnp.where(at[:, None] < self.context, x, jnp.nan)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Layer(nn.Module):
    """Attention, then a perceptron at each position; each behind a norm and beside a residual connection.

    Of a grid, as images are, attention sees the positions row by row.

    Attributes:
      heads: of attention; they divide the features.
      layers: of the whole network: residual projections start at ``0.02 / sqrt(2 layers)`` (GPT-2).
      norms: ``layer`` or ``rms``.
      bias: whether dense layers and norms have biases.
      gated: whether the perceptron is SiLU-gated (Shazeer 2020), of 8/3 times the features; else GELU, of 4 times.
      rotary: whether queries and keys are turned by their positions (Su et al. 2021).
      causal: whether a position sees none that come after it.
      approximate: whether GELU is its approximation by tanh.
      dropout: rate, behind both.
      epsilon: of the norms.
      pooled: what the network's end is to do (:class:`jaxlocal.heads.Unembedding`).
    """

    heads: int
    layers: int
    norms: str = "layer"
    bias: bool = False
    gated: bool = False
    rotary: bool = False
    causal: bool = True
    approximate: bool = False
    dropout: float = 0.0
    epsilon: float = EPSILON
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ... f"], *, train: bool) -> Float[Array, "b ... f"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        norm = functools.partial(normed, kind=self.norms, bias=self.bias, epsilon=self.epsilon)
        x += drop(self._attention(norm(x, name="norm1")))
        return x + drop(self._perceptron(norm(x, name="norm2")))

    def _attention(self, x: Array) -> Array:
        features = x.shape[-1]
        qkv = self._dense(x, 3 * features, "qkv").reshape(len(x), -1, 3, self.heads, features // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        at, mask = positions(self, q.shape[1]), None
        if self.rotary:
            q, k = turned(q, at), turned(k, at)
        if at is not None:
            k, v, mask = self._recalled(k, v, at)
        by: Literal["cudnn", "xla"] = "cudnn" if at is None and has_flash(q.dtype, q.shape[-1]) else "xla"
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=self.causal and mask is None, implementation=by)
        return self._dense(y.reshape(x.shape), features, "projection", residual=True)

    def _recalled(self, k: Array, v: Array, at: Array) -> tuple[Array, Array, Array]:
        """Keys and values of all positions, and which of them each of these sees. As many fit in as came first."""
        if not self.causal:
            raise ValueError("a layer that is not causal cannot go on from a cache: read the whole text at once")
        kept = []
        for name, new in (("key", k), ("value", v)):
            cache = self.variable(CACHE, name, jnp.zeros_like, new)
            cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, at[0], axis=1)
            kept.append(cache.value)
        return *kept, (jnp.arange(kept[0].shape[1]) <= at[:, None])[None, None]  # type: ignore[return-value]

    def _perceptron(self, x: Array) -> Array:
        features = x.shape[-1]
        if self.gated:
            hidden = math.ceil(features * 8 / 3)
            x = nn.silu(self._dense(x, hidden, "gate")) * self._dense(x, hidden, "hidden")
        else:
            x = nn.gelu(self._dense(x, 4 * features, "hidden"), approximate=self.approximate)
        return self._dense(x, features, "output", residual=True)

    def _dense(self, x: Array, features: int, name: str, *, residual: bool = False) -> Array:
        init = initializers.normal(DEVIATION / math.sqrt(2 * self.layers) if residual else DEVIATION)
        layer = functools.partial(nn.Dense, features, use_bias=False, kernel_init=init)
        return (Biased(layer(parent=None), initializers.zeros, name=name) if self.bias else layer(name=name))(x)


def has_flash(dtype: Any, features: int) -> bool:
    """Whether cuDNN's attention, which keeps no scores, can be had on the device that is compiled for.

    It can on NVIDIA's GPUs from compute capability 8 on, in half precision, for heads of multiples of 8 features up to
    128 (documentation of :func:`jax.nn.dot_product_attention`).
    """
    capability = getattr(target(), "compute_capability", "")
    ampere = re.fullmatch(r"(\d+)\.\d+", str(capability))
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return bool(ampere and int(ampere[1]) >= 8) and half and features % 8 == 0 and features <= 128


def positions(module: nn.Module, length: int) -> Int[Array, "t"] | None:
    """Where so many tokens stand that come after those of a cache, which counts them; None without: from 0 on."""
    if not is_caching(module):
        return None
    index = module.variable(CACHE, "index", jnp.zeros, (), jnp.int32)
    at = index.value + jnp.arange(length)
    index.value += length
    return at


def turned(x: Float[Array, "b t h d"], at: Int[Array, "t"] | None = None) -> Float[Array, "b t h d"]:
    """Each half's pairs of features, turned by angles that grow with the position (rotary embedding, half by half).

    Args:
      x: features of each head.
      at: positions; None for those from 0 on.
    """
    half = x.shape[-1] // 2
    rates = 10_000.0 ** -(jnp.arange(half, dtype=jnp.float32) / half)
    where = jnp.arange(x.shape[1], dtype=jnp.float32) if at is None else at.astype(jnp.float32)
    angles = where[:, None, None] * rates
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def gpt(
    layers: int = 4,
    heads: int = 4,
    features: int = 128,
    context: int = 64,
    vocabulary: int = 65,
    bias: bool = False,
    norm: str = "layer",
    gated: bool = False,
    rotary: bool = False,
    approximate: bool = False,
    dropout: float = 0.0,
    tied: bool = False,
) -> tuple[nn.Module, ...]:
    """Tokens ``[b, t]`` to features ``[b, t, features]``: unit 0 embeds, each other is a layer.

    With ``norm="rms", gated=True, rotary=True`` it is a stack as Llama's. The norm and the unembedding at the end
    are the head's.

    Args:
      layers: how many.
      heads: of attention, which divide the features.
      features: of the residual stream.
      context: most positions.
      vocabulary: number of tokens.
      bias: of dense layers and norms.
      norm: ``layer`` or ``rms``.
      gated: SiLU-gated perceptrons in place of GELU.
      rotary: positions by rotation in place of learned features.
      approximate: GELU by tanh, as the published weights of GPT-2 want it; nanoGPT's is exact.
      dropout: rate.
      tied: whether the unembedding is the embedding's table (GPT-2). A cut between them breaks the tie: the
        unembedding has weights of its own then, as auxiliary heads always have.

    Raises:
      ValueError: if a number is out of range, heads do not divide the features, the norm is not known, or GELU is to
        be approximate where there is none.
    """
    if min(layers, heads, features, context, vocabulary) < 1 or features % heads or not 0 <= dropout < 1:
        raise ValueError(
            f"layers {layers}, heads {heads}, features {features}, context {context}, vocabulary {vocabulary}, dropout "
            f"{dropout}: give 1 or more, features that the heads divide, and a rate of 0 or more, below 1"
        )
    if rotary and features // heads % 2:
        raise ValueError(f"features {features} in {heads} heads are {features // heads} each: rotary turns pairs")
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm {norm!r}: choose layer or rms")
    if gated and approximate:
        raise ValueError("approximate is of GELU, and a gated perceptron has SiLU: choose one of them")
    layer = Layer(heads, layers, norm, bias, gated, rotary, approximate=approximate, dropout=dropout)
    return Embedding(vocabulary, features, context, not rotary, dropout, tied), *(layer.clone() for _ in range(layers))
