"""Multi-layer perceptrons."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import ACTIVATIONS, dense, known_activation


class DenseUnit(nn.Module):
    """Dense layer and activation. Flattens what it is given.

    Attributes:
      features: width of the layer.
      activation: a key of :data:`jaxlocal.layers.ACTIVATIONS`.
    """

    features: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b f"]:
        return ACTIVATIONS[self.activation](dense(x.reshape(x.shape[0], -1), self.features, name="dense"))


def mlp(features: Sequence[int] = (256, 256, 256), activation: str = "relu") -> tuple[nn.Module, ...]:
    """One unit per hidden layer; ``[b, ...] -> [b, features[-1]]``.

    Args:
      features: of each layer.
      activation: ``relu``, ``tanh`` or ``sigmoid``.

    Raises:
      ValueError: if there is no layer, or one without features, or the activation is not known.
    """
    if not features or min(features) < 1:
        raise ValueError(f"features {tuple(features)}: give at least one layer, each of 1 or more features")
    return tuple(DenseUnit(f, known_activation(activation)) for f in features)
