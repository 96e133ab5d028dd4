"""Auxiliary heads: what turns a block's output into something a loss can read.

Each is called as ``head(carry, train=...)``. Classifiers return ``[b, k]``, or scores at every position. Images come
as ``[b, h, w, c]``; the features of a dense block, ``[b, f]``, count as one pixel. Where
a head has a ``width``, it multiplies the features of its hidden layers.
"""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlocal.layers import (
    EPSILON,
    BatchNorm,
    Biased,
    adaptive_average_pool,
    as_image,
    bilinear_resize,
    conv,
    dense,
    flatten,
    global_average_pool,
    normed,
    pool_until,
    safe_sqrt,
    scaled,
)
from jaxlocal.scores import Scores
from jaxlocal.task import Task


class Classifier(nn.Module):
    """Global average pool, then a dense layer.

    Attributes:
      num_classes: k.
      each: whether every position answers: then nothing is pooled.
    """

    num_classes: int
    each: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b ... k"]:
        return dense(x if self.each else global_average_pool(x), self.num_classes, name="dense")


class Unembedding(nn.Module):
    """What a transformer ends in: a norm and a dense layer without bias, drawn from N(0, 0.02).

    Attributes:
      num_classes: k.
      norm: ``layer`` or ``rms``.
      bias: of the norm.
      each: whether every position answers; else their mean does.
      hidden: whether a perceptron of four times the features stands behind a norm of its own, beside a residual
        connection: a layer without attention.
      width: of the perceptron, relative to that.
      epsilon: of the norms.
      pooled: where the mean of the positions answers, whether it is taken in front of the norm, and the dense layer has
        a bias.
    """

    num_classes: int
    norm: str
    bias: bool = False
    each: bool = True
    hidden: bool = False
    width: float = 1.0
    epsilon: float = EPSILON
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ... f"], *, train: bool) -> Scores | Float[Array, "b k"]:
        norm = functools.partial(normed, kind=self.norm, bias=self.bias, epsilon=self.epsilon)
        draw = functools.partial(nn.Dense, use_bias=False, kernel_init=nn.initializers.normal(0.02))
        if self.hidden:
            y = norm(x, name="norm1")
            y = nn.gelu(draw(scaled(4 * x.shape[-1], self.width), name="hidden")(y), approximate=False)
            x += draw(x.shape[-1], name="output")(y)
        if self.pooled and not self.each:
            x = norm(global_average_pool(x), name="norm")
            return Biased(draw(self.num_classes, parent=None), nn.initializers.zeros, name="dense")(x)
        x = norm(x, name="norm")
        scores = Scored(self.num_classes, name="dense")(x if self.each else global_average_pool(x))
        return scores if self.each else scores.whole()


class Scored(nn.Module):
    """A dense layer without bias, drawn from N(0, 0.02), that is not multiplied out.

    Attributes:
      num_classes: k.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b ... f"]) -> Scores:
        return Scores(x, self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.num_classes)))


class Answered(nn.Module):
    """No head: the scores that the last unit puts out itself."""

    @nn.compact
    def __call__(self, x: Float[Array, "b k"], *, train: bool) -> Float[Array, "b k"]:
        del train
        return x


def classifier(units: Sequence[nn.Module], task: Task, **options: Any) -> nn.Module:
    """The plain head of a network: an unembedding if its last unit has a field ``norms``, as transformers' have.

    Args:
      units: of the network.
      task: what is asked.
      **options: of :class:`Unembedding`.
    """
    if norm := getattr(units[-1], "norms", ""):
        own = {name: getattr(units[-1], name) for name in ("epsilon", "pooled") if hasattr(units[-1], name)}
        return Unembedding(task.num_classes, norm, units[-1].bias, task.each, **own, **options)
    return Classifier(task.num_classes, task.each)


def output_of(units: Sequence[nn.Module], task: Task) -> nn.Module:
    """The head of a network's output: its plain one, unless the last unit has a field ``answers`` that is true."""
    return Answered() if getattr(units[-1], "answers", False) else classifier(units, task)


class ConvMlp(nn.Module):
    """The head of DGL (Belilovsky et al. 2020, "MLP-SR-aux").

    Average pool to a quarter of the side, three 1x1 convolutions, average pool to at
    most 2x2, two dense layers of that width, a dense classifier. Every hidden layer is
    followed by batch norm and ReLU and has no bias.

    Attributes:
      num_classes: k.
      width: of the hidden layers, relative to the block's output.
      most: features that a hidden layer has at most; None for no limit.
    """

    num_classes: int
    width: float = 1.0
    most: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b k"]:
        x = as_image(x)
        side, most = math.ceil(x.shape[1] / 4), self.most or sys.maxsize
        features = min(scaled(x.shape[-1], self.width), most)
        x = adaptive_average_pool(x, side)
        for i in range(1, 4):
            x = conv(features, 1, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(not train, name=f"conv{i}_bn")(x))
        x = flatten(adaptive_average_pool(x, min(side, 2)))
        features = min(x.shape[-1], most)
        for i in range(1, 3):
            x = dense(x, features, use_bias=False, name=f"dense{i}")
            x = nn.relu(BatchNorm(not train, name=f"dense{i}_bn")(x))
        return dense(x, self.num_classes, name="dense")


class ConvDense(nn.Module):
    """The classifier of InfoPro (Wang et al. 2021, table 8 and code): "1c2f".

    A 3x3 convolution, batch norm, ReLU, global average pool, a dense layer, ReLU and a
    dense layer.

    Attributes:
      num_outputs: k classes, or the features that a contrastive loss compares.
      strides: of the convolution, which has as many times the channels of its input.
      hidden: features of the first dense layer.
      width: of the hidden layers.
    """

    num_outputs: int
    strides: int = 1
    hidden: int = 128
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b k"]:
        x = as_image(x)
        features = scaled(x.shape[-1] * self.strides, self.width)
        x = conv(features, 3, strides=self.strides, name="conv")(x)
        x = global_average_pool(nn.relu(BatchNorm(not train, name="norm")(x)))
        x = nn.relu(dense(x, scaled(self.hidden, self.width), name="dense1"))
        return dense(x, self.num_outputs, name="dense2")


class Decoder(nn.Module):
    """The decoder of InfoPro (Wang et al. 2021, table 8 and code): the image, from a block's output.

    Bilinear interpolation to the image's size, a 3x3 convolution to 12 channels, batch
    norm, ReLU, and a 3x3 convolution. Returns ``[b, h, w, c]``, logits: the image in
    [0, 1] is their sigmoid.

    Attributes:
      shape: ``(h, w, c)`` of the image.
      width: of the hidden layer.
    """

    shape: tuple[int, int, int]
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b ... d"], *, train: bool) -> Float[Array, "b h w c"]:
        h, w, channels = self.shape
        x = bilinear_resize(as_image(x), h, w)
        x = conv(scaled(12, self.width), 3, use_bias=True, name="conv1")(x)
        x = nn.relu(BatchNorm(not train, name="norm")(x))
        return conv(channels, 3, use_bias=True, name="conv2")(x)


class ConvStd(nn.Module):
    """What PredSim compares (Nokland and Eidnes 2019): a 3x3 convolution's deviation over space.

    Returns ``[b, d]``: the standard deviation of each of the convolution's channels over
    the pixels, or the output itself where there is but one pixel. The features of a dense block, ``[b, f]``, go
    through a dense layer without bias in its place.

    Attributes:
      width: of that layer, relative to the block's output.
    """

    width: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b d"]:
        del train
        features = scaled(x.shape[-1], self.width)
        if x.ndim == 2:
            return dense(x, features, use_bias=False, name="dense")
        x = conv(features, 3, name="conv")(x)
        return safe_sqrt(jnp.var(x, axis=(1, 2), ddof=1)) if x.shape[1] * x.shape[2] > 1 else flatten(x)


class PooledClassifier(nn.Module):
    """Average pool until few numbers are left, then a dense layer (PredSim's prediction head, code).

    Attributes:
      num_classes: k.
      features: at most so many are left, unless one pixel has more.
      zero: whether the dense layer's weights start at zero.
    """

    num_classes: int
    features: int = 512
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b k"]:
        del train
        pooled = pool_until(as_image(x), self.features)
        return dense(flatten(pooled), self.num_classes, zero=self.zero, name="dense")


class Units(nn.Module):
    """A head made of units, as AugLocal's: units, global average pool, dense classifier.

    Attributes:
      units: applied in order, with weights of their own.
      num_classes: k.
      norm: whether batch norm stands before the classifier.
      output: a head in place of pool, norm and classifier.
    """

    units: tuple[nn.Module, ...]
    num_classes: int
    norm: bool = False
    output: nn.Module | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Scores | Float[Array, "b k"]:
        for unit in self.units:
            x = unit(x, train=train)
        if self.output:
            return self.output(x, train=train)
        x = global_average_pool(x)
        if self.norm:
            x = BatchNorm(not train, name="norm")(x)
        return dense(x, self.num_classes, name="dense")
