"""Linen variable dicts, and the few operations on them that the core needs.

``Variables`` are Linen collections, ``{collection: tree}``. The collection says
what becomes of a tensor: ``params`` trains, ``batch_stats`` runs along, ``fixed``
never changes. Whatever joins several modules (a block, a weighted sum) joins
them *inside* each collection, so that ``variables['params']`` is always exactly
what a gradient is taken for.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Variables = Mapping[str, Any]
Key = jax.Array

EMA = "ema"  # averages that follow other tensors: they change, but no gradient is taken for them
RUNNING = "batch_stats"  # the only collection that a forward pass may change, but for
FIXED = "fixed"  # what neither trains nor runs along
CACHE = "cache"  # what positions leave to later ones: within :func:`caching`, and in no state of a run

_caching: ContextVar[bool] = ContextVar("caching", default=False)


@contextmanager
def caching() -> Iterator[None]:
    """Modules that are evaluated in here go on where their cache ends, or begin one: it is part of ``mutated``."""
    token = _caching.set(True)
    try:
        yield
    finally:
        _caching.reset(token)


def is_caching(module: nn.Module) -> bool:
    """Whether a module is to read and write its cache."""
    return module.is_mutable_collection(CACHE) and not module.is_initializing()


def nest(**parts: Variables) -> Variables:
    """Joins named variable dicts: ``{name: {collection: t}} -> {collection: {name: t}}``."""
    collections = sorted({collection for part in parts.values() for collection in part})
    return {c: {name: part[c] for name, part in parts.items() if c in part} for c in collections}


def pick(variables: Variables, name: str) -> Variables:
    """Takes one part out of nested variables; the inverse of :func:`nest`."""
    return {c: tree[name] for c, tree in variables.items() if name in tree}


def merge(old: Variables, new: Variables) -> Variables:
    """Replaces the named parts that ``new`` has; the other parts and collections stay."""
    return {c: {**old.get(c, {}), **new.get(c, {})} for c in {**old, **new}}


def split(variables: Variables) -> tuple[Any, Variables]:
    """Separates what trains from everything else: ``(params, the other collections)``."""
    rest = {c: tree for c, tree in variables.items() if c != "params"}
    return variables.get("params", {}), rest


def cast(variables: Variables, dtype: Any) -> Variables:
    """Casts every floating tensor to ``dtype``, except running statistics, wherever they are nested.

    Running statistics keep their precision: in bfloat16 a moving average with
    momentum 0.9 would stop moving. Frozen ones are within ``fixed``.
    """

    def leaf(path: Any, x: Any) -> Any:
        return x if jax.tree_util.DictKey(RUNNING) in path else cast_floating(x, dtype)

    return jax.tree_util.tree_map_with_path(leaf, variables)


def computable(dtype: Any) -> Any:
    """The dtype itself, if blocks can compute in it.

    Raises:
      ValueError: if it is none of float32, bfloat16 and (under x64) float64.
    """
    wide = (jnp.float64,) if jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64 else ()
    if jnp.dtype(dtype) not in (jnp.dtype(known) for known in (jnp.float32, jnp.bfloat16, *wide)):
        raise ValueError(
            f"dtype {jnp.dtype(dtype)} given; compute in float32, bfloat16, or float64 under jax_enable_x64 "
            "(float16 would need its loss scaled, which is not done here)"
        )
    return dtype


def accumulator(dtype: Any) -> Any:
    """What sums of more than a few values of a floating dtype are accumulated in: float32, or itself if it is wider."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else dtype


def cast_floating(tree: Any, dtype: Any) -> Any:
    """Casts the floating leaves of a pytree to ``dtype``; others are left alone."""

    def leaf(x: Any) -> Any:
        return x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

    return jax.tree.map(leaf, tree)


def size(tree: Any) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Bytes that a pytree of arrays, or of their shapes, takes; PRNG keys are not counted."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(size(leaf) * leaf.dtype.itemsize for leaf in leaves)


def alike(a: Any, b: Any) -> bool:
    """Whether two pytrees of arrays have the same structure and shapes."""
    return jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)


def abstract(x: Any) -> Any:
    """Shape and dtype of an array, or of what stands for one: a :class:`jax.ShapeDtypeStruct`."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def init_module(module: nn.Module, key: Key, x: Any) -> tuple[Any, Variables]:
    """Initialises a Linen module that is called as ``module(x, train=...)``.

    Eagerly: compiling the initialisation of a deep network takes minutes.

    Returns:
      ``(output, variables)``.
    """
    return module.init_with_output(key, x, train=False)


def apply_module(module: nn.Module, variables: Variables, x: Any, key: Key, *, train: bool) -> tuple[Any, Variables]:
    """Applies a Linen module; ``key`` feeds its dropout.

    Returns:
      ``(output, mutated)`` where ``mutated`` holds the new running statistics
      (none when ``train`` is false; then the cache, within :func:`caching`).
    """
    if not train and _caching.get():
        return module.apply(variables, x, train=False, mutable=[CACHE])
    if not train:
        return module.apply(variables, x, train=False), {}
    rngs = {"dropout": key}
    return module.apply(variables, x, train=True, rngs=rngs, mutable=[RUNNING])
