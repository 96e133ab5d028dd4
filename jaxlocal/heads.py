"""Auxiliary heads: what turns a block's output into class scores.

Each is called as ``head(carry, train=...)`` and returns ``[b, k]``. Images come as
``[b, h, w, c]``; the features of a dense block, ``[b, f]``, count as one pixel.
"""

import math

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import BatchNorm, adaptive_average_pool, conv, dense, global_average_pool


class Classifier(nn.Module):
    """Global average pool, then a dense layer.

    Attributes:
      num_classes: k.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b k"]:
        return dense(global_average_pool(x), self.num_classes, name="dense")


class ConvMlp(nn.Module):
    """The head of DGL (Belilovsky et al. 2020, "MLP-SR-aux").

    Average pool to a quarter of the side, three 1x1 convolutions, average pool to at
    most 2x2, two dense layers of that width, a dense classifier. Every hidden layer is
    followed by batch norm and ReLU and has no bias.

    Attributes:
      num_classes: k.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b k"]:
        b, c = x.shape[0], x.shape[-1]
        x = x if x.ndim == 4 else x.reshape(b, 1, 1, -1)
        side = math.ceil(x.shape[1] / 4)
        x = adaptive_average_pool(x, side)
        for i in range(1, 4):
            x = conv(c, 1, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(not train, name=f"conv{i}_bn")(x))
        x = adaptive_average_pool(x, min(side, 2)).reshape(b, -1)
        width = x.shape[-1]
        for i in range(1, 3):
            x = dense(x, width, use_bias=False, name=f"dense{i}")
            x = nn.relu(BatchNorm(not train, name=f"dense{i}_bn")(x))
        return dense(x, self.num_classes, name="dense")


class Units(nn.Module):
    """A head made of units, as AugLocal's: units, global average pool, dense classifier.

    Attributes:
      units: applied in order, with weights of their own.
      num_classes: k.
      norm: whether batch norm stands before the classifier.
    """

    units: tuple[nn.Module, ...]
    num_classes: int
    norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b k"]:
        for unit in self.units:
            x = unit(x, train=train)
        x = global_average_pool(x)
        if self.norm:
            x = BatchNorm(not train, name="norm")(x)
        return dense(x, self.num_classes, name="dense")
