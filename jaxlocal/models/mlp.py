"""Multi-layer perceptrons."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import dense


class DenseUnit(nn.Module):
    """Dense layer and ReLU. Flattens what it is given.

    Attributes:
      features: width of the layer.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b f"]:
        return nn.relu(dense(x.reshape(x.shape[0], -1), self.features, name="dense"))


def mlp(features: Sequence[int] = (256, 256, 256)) -> tuple[nn.Module, ...]:
    """One unit per hidden layer; ``[b, ...] -> [b, features[-1]]``.

    Raises:
      ValueError: if there is no layer, or one without features.
    """
    if not features or min(features) < 1:
        raise ValueError(f"features {tuple(features)}: give at least one layer, each of 1 or more features")
    return tuple(DenseUnit(f) for f in features)
