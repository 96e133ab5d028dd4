"""Positions of texts as examples: what is seen at some of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from jaxlocal.variables import Key


def drawn_positions(key: Key, first: Int[Array, ""] | int, n: int, context: int, each: int) -> Int[Array, "{n} {each}"]:
    """Positions of windows, none of them twice; they follow from key and window, whatever batches windows come in.

    Args:
      key: to draw from.
      first: number of the first window.
      n: windows.
      context: t, positions of a window.
      each: positions that are drawn of each window, t at most.
    """
    keys = jax.vmap(lambda window: jax.random.fold_in(key, window))(first + jnp.arange(n))
    return jax.vmap(lambda key: jax.random.permutation(key, context)[:each])(keys)


def at_positions(x: Num[Array, "b t ..."], positions: Int[Array, "b p"]) -> Num[Array, "n ..."]:
    """What is there at some positions of each window: ``b p`` examples."""
    taken = jax.vmap(lambda row, at: row[at])(x, positions)
    return jnp.reshape(taken, (-1, *x.shape[2:]))
