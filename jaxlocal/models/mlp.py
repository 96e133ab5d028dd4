"""Multi-layer perceptrons."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import ACTIVATIONS, BatchNorm, dense, known_activation


class DenseUnit(nn.Module):
    """Dropout, dense layer, batch norm and activation, the first and the third by option. Flattens what it is given.

    Attributes:
      features: width of the layer.
      activation: a key of :data:`jaxlocal.layers.ACTIVATIONS`.
      norm: whether there is batch norm.
      dropout: rate, of the input.
    """

    features: int
    activation: str = "relu"
    norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b f"]:
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        x = dense(x, self.features, name="dense")
        x = BatchNorm(not train, name="norm")(x) if self.norm else x
        return ACTIVATIONS[self.activation](x)


def mlp(
    features: Sequence[int] = (256, 256, 256), activation: str = "relu", norm: bool = False, dropout: float = 0.0
) -> tuple[nn.Module, ...]:
    """One unit per hidden layer; ``[b, ...] -> [b, features[-1]]``.

    Args:
      features: of each layer.
      activation: a key of :data:`jaxlocal.layers.ACTIVATIONS`.
      norm: whether batch norm stands between dense layer and activation.
      dropout: rate, between layers: what a layer is given is dropped, so that heads read all of what it puts out.

    Raises:
      ValueError: if there is no layer, or one without features, the activation is not known, or the rate not in [0, 1).
    """
    if not features or min(features) < 1:
        raise ValueError(f"features {tuple(features)}: give at least one layer, each of 1 or more features")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout}: choose 0 or more, below 1")
    rates = (0.0, *(dropout for _ in features[1:]))  # the image is whole
    return tuple(DenseUnit(f, known_activation(activation), norm, r) for f, r in zip(features, rates, strict=True))
