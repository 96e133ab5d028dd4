"""Residual networks for small images (He et al. 2016, "Deep Residual Learning", section 4.2)."""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import BatchNorm, conv


class Stem(nn.Module):
    """3x3 convolution, batch norm, ReLU.

    Attributes:
      features: channels of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        return nn.relu(BatchNorm(not train, name="bn1")(conv(self.features, 3, name="conv1")(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected (1x1) where the shape changes.

    Attributes:
      features: channels of the output.
      strides: of the first convolution and of the projection.
    """

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        y = conv(self.features, 3, strides=self.strides, name="conv1")(x)
        y = nn.relu(BatchNorm(not train, name="bn1")(y))
        y = BatchNorm(not train, name="bn2")(conv(self.features, 3, name="conv2")(y))
        return nn.relu(y + shortcut(x, self.features, self.strides, train=train))


def shortcut(x: Float[Array, "b h w c"], features: int, strides: int, *, train: bool) -> Float[Array, "b p q d"]:
    """A residual block's other branch: the input, or its projection (1x1, batch norm) where the shape changes."""
    if strides == 1 and x.shape[-1] == features:
        return x
    return BatchNorm(not train, name="proj_bn")(conv(features, 1, strides=strides, name="proj_conv")(x))


def resnet(depth: int = 32, width: int = 16) -> tuple[nn.Module, ...]:
    """CIFAR ResNet of ``depth = 6n + 2`` layers: a stem and 3n residual blocks, 3n + 1 units.

    Args:
      depth: 8, 14, 20, 32, 44, 56, 110 ...
      width: channels of the first stage; each of the three stages doubles it.

    Returns:
      Units; ``[b, h, w, c] -> [b, h / 4, w / 4, 4 width]``.

    Raises:
      ValueError: if the depth is not 6n + 2, or the width is not positive.
    """
    n, remainder = divmod(depth - 2, 6)
    if remainder or n < 1:
        raise ValueError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, 32, 44, 56, 110 ...), not {depth}")
    if width < 1:
        raise ValueError(f"width {width}: give 1 or more channels")
    stages = [BasicBlock(width * 2**stage, strides=2 if stage and not i else 1) for stage in range(3) for i in range(n)]
    return (Stem(width), *stages)
