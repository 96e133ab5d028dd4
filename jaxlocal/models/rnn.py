"""Recurrent networks over the rows of an image."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxlocal.layers import in_float32

CELLS = {"rnn": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}


class RecurrentUnit(nn.Module):
    """One recurrent layer: ``[b, t, f] -> [b, t, features]``; of an image, rows are time steps.

    It computes in float32, or wider: states and gradients are sums over time.

    Attributes:
      features: of the state.
      cell: a key of :data:`CELLS`.
      last: whether only the last state is put out, ``[b, features]``.
    """

    features: int
    cell: str = "rnn"
    last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b ... g"]:
        rows = in_float32(x.reshape(*x.shape[:2], -1))
        cell = CELLS[self.cell](self.features, name="cell")
        widened = functools.partial(jax.tree.map, in_float32)
        # Around the loop, not in the cell: the gradients of all time steps add up in the dtype of what the loop takes.
        layer = nn.map_variables(nn.RNN, "params", trans_in_fn=widened, init=self.is_initializing())
        start = jax.tree.map(lambda s: s.astype(rows.dtype), cell.initialize_carry(jax.random.key(0), rows[:, 0].shape))
        states: Any = layer(cell, name="layer")(rows, initial_carry=start)
        return (states[:, -1] if self.last else states).astype(x.dtype)


def rnn(features: Sequence[int] = (256,), cell: str = "rnn") -> tuple[nn.Module, ...]:
    """One unit per layer; ``[b, h, w, c] -> [b, features[-1]]``: an image is read row by row.

    The last layer puts out its last state.

    Args:
      features: of each layer's state.
      cell: ``rnn`` (tanh), ``gru`` or ``lstm``.

    Raises:
      ValueError: if there is no layer, or one without features, or the cell is not known.
    """
    if not features or min(features) < 1:
        raise ValueError(f"features {tuple(features)}: give at least one layer, each of 1 or more features")
    if cell not in CELLS:
        raise ValueError(f"cell {cell!r}: choose one of {', '.join(CELLS)}")
    return tuple(RecurrentUnit(f, cell, last=i == len(features)) for i, f in enumerate(features, 1))
