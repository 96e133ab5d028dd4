"""Heads that own no unembedding: they read the embedding's table, or one that follows the last block's."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxlocal.objective import Batch, Carry, LocalObjective, ObjectiveOut, same_for_equal_arguments
from jaxlocal.variables import EMA, Key, Variables, merge

_LENT = "lent"  # the collection of what a head has of its block's units
_TABLE = ("dense", "kernel")  # how the paths end at which heads keep an unembedding


@same_for_equal_arguments
def tied(inner: LocalObjective) -> LocalObjective:
    """The unembedding of the head is the table of the embedding in its own block, which has both gradients (GPT-2).

    Args:
      inner: a readout by :class:`jaxlocal.heads.Unembedding`. It raises ValueError where its block has no embedding.
    """

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        variables = inner.init(key, carry, batch)
        return {**variables, "params": {name: x for name, x in variables["params"].items() if name != _TABLE[0]}}

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        if _LENT not in variables:
            raise ValueError("a tied unembedding needs the embedding in its own block: leave them together, or untie")
        own = {c: tree for c, tree in variables.items() if c != _LENT}
        return inner.apply(merge(own, {"params": variables[_LENT]}), carry, batch, key, train=train)

    def lent(variables: Variables) -> Variables:
        flat = traverse_util.flatten_dict(variables["params"].get("unit_0", {}))
        tables = [x for path, x in flat.items() if path[-1] == "tokens"]
        return {_LENT: traverse_util.unflatten_dict({_TABLE: tables[0].T})} if tables else {}

    return inner._replace(init=init, apply=apply, lent=lent)


@same_for_equal_arguments
def following(inner: LocalObjective, decay: float, dtype: Any = None) -> LocalObjective:
    """The unembedding of the head is a moving average of the last block's: no gradient is taken for it.

    It starts at a draw of its own. After each step, ``average <- decay average + (1 - decay) last``, by
    :func:`optax.ema`.

    Args:
      inner: an objective with one head that ends in a dense layer without bias, and no sync.
      decay: in [0, 1); with 0 it is the last block's as it was a step ago.
      dtype: that it is kept in; None for the last block's.
    """
    average = optax.ema(decay, debias=False)

    def apart(variables: Variables) -> Variables:
        """The table among the averages."""
        path, table = _table(variables["params"])
        rest = {p: x for p, x in traverse_util.flatten_dict(variables["params"]).items() if p != path}
        averages = traverse_util.unflatten_dict({path: table if dtype is None else table.astype(dtype)})
        return {**variables, "params": traverse_util.unflatten_dict(rest), EMA: averages}

    def whole(variables: Variables) -> Variables:
        """The table among the parameters."""
        flat = {**traverse_util.flatten_dict(variables["params"]), **traverse_util.flatten_dict(variables[EMA])}
        rest = {c: tree for c, tree in variables.items() if c != EMA}
        return {**rest, "params": traverse_util.unflatten_dict(flat)}

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        return apart(inner.init(key, carry, batch))

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        return inner.apply(whole(variables), carry, batch, key, train=train)

    def sync(variables: Variables, peer: Any, *, start: bool) -> Variables:
        del start  # the last block is not there yet
        path, table = _table(variables[EMA])
        old = optax.EmaState(jnp.zeros((), jnp.int32), table)
        new = average.update(_table(peer["head"])[1], old)[1].ema
        return {**variables, EMA: traverse_util.unflatten_dict({path: new.astype(table.dtype)})}

    return LocalObjective(init, apply, sync, peer="last", lent=inner.lent)


def _table(tree: Any) -> tuple[tuple[str, ...], jax.Array]:
    """Where a head keeps its unembedding, and that.

    Raises:
      ValueError: if there is not exactly one.
    """
    flat = traverse_util.flatten_dict(tree)
    found = [(p, x) for p, x in flat.items() if p[-2:] == _TABLE and (*p[:-1], "bias") not in flat]
    if len(found) != 1:
        raise ValueError(
            f"a head with one unembedding is needed, {'/'.join(_TABLE)} without a bias; this one has {len(found)}"
        )
    return found[0]
