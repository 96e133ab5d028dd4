"""Recurrent networks over the rows of an image."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

CELLS = {"rnn": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}


class RecurrentUnit(nn.Module):
    """One recurrent layer: ``[b, t, f] -> [b, t, features]``; of an image, rows are time steps.

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
        x = x.reshape(*x.shape[:2], -1)
        cell = CELLS[self.cell](self.features, name="cell")

        start = jax.tree.map(lambda s: s.astype(x.dtype), cell.initialize_carry(jax.random.key(0), x[:, 0].shape))
        states: Any = nn.RNN(cell, name="layer")(x, initial_carry=start)
        return states[:, -1] if self.last else states


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
