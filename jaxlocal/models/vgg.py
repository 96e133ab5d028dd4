"""VGG networks with batch norm.

Each convolution is a unit. A cut comes before a max pool, not after it (AugLocal's code), so a stage's
first unit begins with one; the last pool ends the last unit. Convolutions have no bias, as batch norm
follows. The dense layers are not here: the classifier belongs to the rule, which ends a network in a
global average pool and a dense layer.

References:
  Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition.
  ICLR 2015, table 1 (A, B, D, E). arXiv 1409.1556.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import BatchNorm, conv
from jaxlocal.models.convnet import ConvUnit

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class PooledConvUnit(nn.Module):
    """A max pool where ``strides`` is above 1, then 3x3 convolution, batch norm, ReLU.

    Attributes:
      features: channels of the output.
      strides: window and stride of the max pool.
    """

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        window = (self.strides, self.strides)
        x = x if self.strides == 1 else nn.max_pool(x, window, strides=window)
        x = conv(self.features, 3, name="conv")(x)
        return nn.relu(BatchNorm(not train, name="bn")(x))


def vgg(depth: int = 19, width: int = 64) -> tuple[nn.Module, ...]:
    """VGG of ``depth`` layers: one unit per convolution; 5, 8, 10, 13 and 16 units.

    Args:
      depth: 8, 11, 13, 16 or 19, the classifier's three dense layers included.
      width: channels of the first stage; each of the next three doubles it.

    Returns:
      Units; ``[b, h, w, c] -> [b, h / 32, w / 32, 8 width]``; sides round down.

    Raises:
      ValueError: if the depth is none of these, or the width is not positive.
    """
    if depth not in CONVOLUTIONS:
        raise ValueError(f"a VGG has 8, 11, 13, 16 or 19 layers, not {depth}")
    if width < 1:
        raise ValueError(f"width {width}: give 1 or more channels")
    units = [
        PooledConvUnit(width * 2 ** min(stage, 3), strides=2 if stage and not i else 1)
        for stage, number in enumerate(CONVOLUTIONS[depth])
        for i in range(number)
    ]
    return (*units[:-1], ConvUnit(units[-1].features, strides=2))
