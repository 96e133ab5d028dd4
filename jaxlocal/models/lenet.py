"""Convolutions with pools, then dense layers: LeNet and its relatives."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import ACTIVATIONS, conv, known_activation
from jaxlocal.models.mlp import DenseUnit


class PoolUnit(nn.Module):
    """Convolution with a bias, activation, and a max pool.

    Attributes:
      features: channels of the output.
      kernel: side of the convolution.
      strides: window and stride of the pool.
      activation: a key of :data:`jaxlocal.layers.ACTIVATIONS`.
    """

    features: int
    kernel: int = 5
    strides: int = 2
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        x = ACTIVATIONS[self.activation](conv(self.features, self.kernel, use_bias=True, name="conv")(x))
        window = (self.strides, self.strides)
        return nn.max_pool(x, window, strides=window)


def lenet(
    features: Sequence[int] = (32, 64), dense: Sequence[int] = (1000,), kernel: int = 5, activation: str = "relu"
) -> tuple[nn.Module, ...]:
    """One unit per convolution, each with a 2x2 max pool, then one per dense layer; ``[b, h, w, c] -> [b, dense[-1]]``.

    Args:
      features: of the convolutions.
      dense: of the dense layers.
      kernel: side of the convolutions, odd.
      activation: a key of :data:`jaxlocal.layers.ACTIVATIONS`.

    Raises:
      ValueError: if a kind of layer is missing or has no features, or the activation is not known.
    """
    if not features or not dense or min((*features, *dense)) < 1 or kernel < 1 or kernel % 2 == 0:
        raise ValueError(
            f"features {tuple(features)}, dense {tuple(dense)}, kernel {kernel}: give at least one of each layer, "
            "each of 1 or more features, and an odd kernel"
        )
    name = known_activation(activation)
    return (*(PoolUnit(f, kernel, activation=name) for f in features), *(DenseUnit(f, name) for f in dense))
