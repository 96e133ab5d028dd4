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
      truncated: whether gradients stay within a time step, as forward-only rules ask.
    """

    features: int
    cell: str = "rnn"
    truncated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b t g"]:
        x = x.reshape(*x.shape[:2], -1)
        cell = CELLS[self.cell](self.features, name="cell")

        def step(cell: nn.Module, state: Any, now: Array) -> tuple[Any, Array]:
            return cell(jax.lax.stop_gradient(state) if self.truncated else state, now)

        start = jax.tree.map(lambda s: s.astype(x.dtype), cell.initialize_carry(jax.random.key(0), x[:, 0].shape))
        over_time = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        return over_time(cell, start, x)[1]


def rnn(features: Sequence[int] = (256,), cell: str = "rnn") -> tuple[nn.Module, ...]:
    """One unit per layer; ``[b, h, w, c] -> [b, h, features[-1]]``: an image is read row by row.

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
    return tuple(RecurrentUnit(f, cell) for f in features)
