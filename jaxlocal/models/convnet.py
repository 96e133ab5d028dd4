"""Plain convolutional networks."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import BatchNorm, conv


class ConvUnit(nn.Module):
    """3x3 convolution, batch norm, ReLU, and a max pool where ``strides`` is above 1.

    Attributes:
      features: channels of the output.
      strides: window and stride of the max pool.
    """

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        x = conv(self.features, 3, name="conv")(x)
        x = nn.relu(BatchNorm(not train, name="bn")(x))
        window = (self.strides, self.strides)
        return x if self.strides == 1 else nn.max_pool(x, window, strides=window)


def convnet(
    features: Sequence[int] = (32, 32, 64, 64, 128, 128), strides: Sequence[int] = (1, 1, 2, 1, 2, 1)
) -> tuple[nn.Module, ...]:
    """One unit per convolution; ``[b, h, w, c] -> [b, h / prod(strides), w / prod(strides), features[-1]]``.

    Raises:
      ValueError: if features and strides are not of one length, or not positive.
    """
    if len(features) != len(strides) or not features or min((*features, *strides)) < 1:
        raise ValueError(
            f"features {tuple(features)} and strides {tuple(strides)}: give one positive number of each per unit"
        )
    return tuple(ConvUnit(f, s) for f, s in zip(features, strides, strict=True))
