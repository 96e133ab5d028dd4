"""Residual networks for large images: ResNet and ResNeXt.

The classifier belongs to the rule, which ends a network in a global average pool and a dense layer; with
it, parameter counts are those of the usual implementations.

References:
  He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016, table 1; the stride
  of a bottleneck on its 3x3 convolution, as in AugLocal's code, not on the first 1x1.
  Xie, Girshick, Dollar, Tu, He. Aggregated Residual Transformations for Deep Neural Networks.
  CVPR 2017, table 1.
"""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import BatchNorm, conv
from jaxlocal.models.resnet import BasicBlock, shortcut

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECKS = (50, 101, 152)


class PooledStem(nn.Module):
    """7x7 convolution, batch norm, ReLU, 3x3 max pool.

    Attributes:
      features: channels of the output.
      strides: 4, of which the convolution takes 2 and the max pool 2; without a max pool, 1 or 2.
    """

    features: int
    strides: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        x = conv(self.features, 7, strides=min(self.strides, 2), name="conv1")(x)
        x = nn.relu(BatchNorm(not train, name="bn1")(x))
        return x if self.strides <= 2 else nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, projected (1x1) where the shape changes.

    The inner width follows from ``features``, and is a multiple of ``groups`` whatever they are.

    Attributes:
      features: channels of the output.
      strides: of the 3x3 convolution and of the projection.
      groups: of the 3x3 convolution.
      group_width: channels of a group for 256 features, and in proportion for others.
    """

    features: int
    strides: int = 1
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        inner = self.groups * max(1, self.features * self.group_width // 256)
        y = nn.relu(BatchNorm(not train, name="bn1")(conv(inner, 1, name="conv1")(x)))
        y = conv(inner, 3, strides=self.strides, groups=self.groups, name="conv2")(y)
        y = nn.relu(BatchNorm(not train, name="bn2")(y))
        y = BatchNorm(not train, name="bn3")(conv(self.features, 1, name="conv3")(y))
        return nn.relu(y + shortcut(x, self.features, self.strides, train=train))


def imagenet_resnet(depth: int = 50, width: int = 64) -> tuple[nn.Module, ...]:
    """ImageNet ResNet: a stem and residual blocks; 9, 17, 17, 34 and 51 units.

    Args:
      depth: 18 or 34, of basic blocks; 50, 101 or 152, of bottlenecks.
      width: channels of the stem and of the first stage (of its bottlenecks' 3x3
        convolutions); each of the four stages doubles it.

    Returns:
      Units; ``[b, h, w, c] -> [b, h / 32, w / 32, 8 width]``, of bottlenecks ``32 width``; sides round up.

    Raises:
      ValueError: if the depth is none of these, or the width is not positive.
    """
    if depth not in BLOCKS:
        raise ValueError(f"an ImageNet ResNet has 18, 34, 50, 101 or 152 layers, not {depth}")
    if depth in BOTTLENECKS:
        return _units(Bottleneck, depth, width, expansion=4)
    return _units(BasicBlock, depth, width, expansion=1)


def resnext(depth: int = 101, groups: int = 32, group_width: int = 8, width: int = 64) -> tuple[nn.Module, ...]:
    """ResNeXt: a ResNet whose 3x3 convolutions are grouped; the default is ResNeXt-101 32x8d, of 34 units.

    Args:
      depth: 50, 101 or 152.
      groups: of each 3x3 convolution.
      group_width: channels of a group in the first stage at width 64; other widths and
        stages in proportion, at least one.
      width: channels of the stem, a quarter of the first stage's output; each of the
        four stages doubles it.

    Returns:
      Units; ``[b, h, w, c] -> [b, h / 32, w / 32, 32 width]``; sides round up.

    Raises:
      ValueError: if the depth is none of these, or a number is not positive.
    """
    if depth not in BOTTLENECKS:
        raise ValueError(f"a ResNeXt has 50, 101 or 152 layers, not {depth}")
    if min(groups, group_width) < 1:
        raise ValueError(f"{groups} groups of {group_width} channels: give 1 or more of each")

    def block(features: int, strides: int) -> nn.Module:
        return Bottleneck(features, strides, groups, group_width)

    return _units(block, depth, width, expansion=4)


def _units(block: Callable[[int, int], nn.Module], depth: int, width: int, *, expansion: int) -> tuple[nn.Module, ...]:
    """The stem, and ``block(features, strides)`` for each block of the four stages."""
    if width < 1:
        raise ValueError(f"width {width}: give 1 or more channels")
    blocks = [
        block(expansion * width * 2**stage, 2 if stage and not i else 1)
        for stage, number in enumerate(BLOCKS[depth])
        for i in range(number)
    ]
    return (PooledStem(width), *blocks)
