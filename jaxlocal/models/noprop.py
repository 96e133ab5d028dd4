"""Networks that denoise a label, for NoProp and for the baseline of the same architecture.

The first unit owns the class embeddings. Every other unit looks at the image and at a noised embedding of the label,
and guesses the class (Li et al. 2025, appendix). As they stand the units are the paper's backprop baseline: each
moves the embedding towards its guess by a learned share, and the last unit hands it to a classifier. The rules of
NoProp put schedules in the place of that share.

References:
  Li, Teh, Pascanu. NoProp: Training Neural Networks without Full Back-propagation or Full
  Forward-propagation. arXiv 2503.24322.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlocal.diffusion import normal, normal_of
from jaxlocal.layers import BatchNorm, conv, dense, flatten, in_float32, scaled, spread

EMBEDDINGS = ("one_hot", "learned", "prototype")
Prototypes = Callable[[], Float[Array, "k d"]]


class Diffusion(NamedTuple):
    """What flows from unit to unit.

    Attributes:
      image: ``[b, h, w, c]``, the same everywhere.
      z: ``[b, d]``, the noised label.
      table: ``[k, d]``, the class embeddings.
      kernel: ``[d, k]`` of the output head; None where a classifier follows the network.
      bias: ``[k]``, likewise.
      logits: ``[b, k]``, the last guess; zeros before the first.
      weight: ``[b]``, of the next guess's error.
    """

    image: Float[Array, "b h w c"]
    z: Float[Array, "b d"]
    table: Float[Array, "k d"]
    kernel: Float[Array, "d k"] | None
    bias: Float[Array, "k"] | None
    logits: Float[Array, "b k"]
    weight: Float[Array, "b"]

    def guess(self) -> Float[Array, "b d"]:
        """The mean embedding under the last guess's probabilities."""
        return expected(self.logits, self.table)

    def answer(self, z: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """The output head's logits."""
        assert self.kernel is not None
        assert self.bias is not None
        return _affine(z, self.kernel, self.bias)

    def embedding(self, label: Int[Array, "b"]) -> Float[Array, "b d"]:
        """Of each label; the sum of a class's gradients is accumulated in float32 or wider."""
        return in_float32(self.table)[label].astype(self.table.dtype)


class LabelUnit(nn.Module):
    """Owner of the class embeddings, and of the output head if there is one; starts from noise.

    A prediction's noise follows from the image (:func:`jaxlocal.diffusion.normal_of`), that of training from the key.

    Attributes:
      classes: k.
      features: d, of learned embeddings.
      embedding: one of :data:`EMBEDDINGS`.
      prototypes: gives the embeddings of that kind.
      head: whether the output head is here.
    """

    classes: int
    features: int = 20
    embedding: str = "one_hot"
    prototypes: Prototypes | None = None
    head: bool = False

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], *, train: bool) -> Diffusion:
        table = self._table().astype(image.dtype)
        kernel, bias = _output_head(self, table) if self.head else (None, None)
        z = jnp.zeros((len(image), table.shape[1]), image.dtype)
        z = normal(self.make_rng("dropout"), z) if train else normal_of(image, 0, z)
        logits = jnp.zeros((len(image), self.classes), image.dtype)
        return Diffusion(image, z, table, kernel, bias, logits, jnp.ones(len(image), image.dtype))

    def _table(self) -> Float[Array, "k d"]:
        if self.embedding == "learned":
            return self.param("table", nn.initializers.orthogonal(), (self.classes, self.features))
        if self.embedding == "one_hot":
            return jnp.eye(self.classes)
        assert self.prototypes is not None
        return self.variable("fixed", "table", self.prototypes).value


class ImageFeatures(nn.Module):
    """What a unit sees of an image: three convolutions and a dense layer, ``[b, h, w, c] -> [b, 256 width]``.

    Attributes:
      width: relative to the paper's.
      norm: whether batch norm follows the dense layer.
      dropout: after every convolution.
    """

    width: float = 1.0
    norm: bool = True
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b f"]:
        for i, (features, pool) in enumerate(((32, True), (64, False), (128, True)), 1):
            x = nn.relu(conv(scaled(features, self.width), 3, use_bias=True, name=f"conv{i}")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2)) if pool else x
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = dense(flatten(x), scaled(256, self.width), name="dense")
        return BatchNorm(not train, name="norm")(x) if self.norm else x


class Guess(nn.Module):
    """From an image's features, a noised label and perhaps the time: ``[b, outputs]``, in the dtype of the features.

    Attributes:
      outputs: k classes, or the d numbers of a velocity.
      width: relative to the paper's.
      norm: whether batch norms follow the dense layers.
      dropout: after convolutions.
      image: shape of the images; a label that is embedded as an image is looked at like one.
    """

    outputs: int
    width: float = 1.0
    norm: bool = True
    dropout: float = 0.2
    image: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, features: Float[Array, "b f"], z: Float[Array, "b d"], time: Float[Array, "b"] | None, *, train: bool
    ) -> Float[Array, "b o"]:
        wide, narrow = scaled(256, self.width), scaled(128, self.width)
        z = z.astype(features.dtype)

        def layer(x: Array, features: int, name: str) -> Array:
            x = dense(x, features, name=name)
            return BatchNorm(not train, name=f"{name}_norm")(x) if self.norm else x

        if z.shape[1] == math.prod(self.image):
            look = ImageFeatures(self.width, self.norm, self.dropout, name="label")
            h = look(z.reshape(-1, *self.image), train=train)
        else:
            h = nn.relu(layer(z, wide, "label1"))
            h = h + layer(nn.relu(layer(h, wide, "label2")), wide, "label3")
        paths = [features, h]
        if time is not None:
            paths.append(nn.relu(dense(sinusoidal(time).astype(features.dtype), wide, name="time")))
        x = nn.relu(layer(jnp.concatenate(paths, axis=-1), wide, "fuse1"))
        return dense(nn.relu(layer(x, narrow, "fuse2")), self.outputs, name="answer")


def sinusoidal(time: Float[Array, "b"], features: int = 64) -> Float[Array, "b f"]:
    """Sines and cosines of time in [0, 1] at ``features / 2`` frequencies from 1 to 1000 (Vaswani et al. 2017)."""
    angles = time[:, None] * jnp.logspace(0, 3, features // 2, dtype=time.dtype)
    return jnp.concatenate((jnp.sin(angles), jnp.cos(angles)), axis=-1)


class Denoiser(nn.Module):
    """One step: a guess of the class, and perhaps the label's embedding moved towards it.

    Attributes:
      classes: k.
      width: relative to the paper's.
      dropout: after every convolution.
      moves: whether z takes a learned share of the guess; else it stays, and what follows decides.
    """

    classes: int
    width: float = 1.0
    dropout: float = 0.2
    moves: bool = True

    @nn.compact
    def __call__(self, carry: Diffusion, *, train: bool) -> Diffusion:
        features = ImageFeatures(self.width, dropout=self.dropout, name="image")(carry.image, train=train)
        guess = Guess(self.classes, self.width, True, self.dropout, carry.image.shape[1:], name="guess")
        guessed = carry._replace(logits=guess(features, carry.z, None, train=train))
        if not self.moves:
            return guessed
        share = spread(nn.tanh(in_float32(self.param("share", nn.initializers.ones, ()))), carry.z)
        return guessed._replace(z=(1 - share) * carry.z + share * guessed.guess())


class Answer(nn.Module):
    """The output head of the baseline, which is one more unit.

    Attributes:
      answers: it puts out class scores.
    """

    answers: bool = True

    @nn.compact
    def __call__(self, carry: Diffusion, *, train: bool) -> Float[Array, "b k"]:
        del train
        kernel, bias = _output_head(self, carry.table)
        return _affine(carry.z, kernel, bias)


def _affine(z: Float[Array, "b d"], kernel: Float[Array, "d k"], bias: Float[Array, "k"]) -> Float[Array, "b k"]:
    y = z @ kernel
    return y + spread(bias, y)


def _output_head(owner: nn.Module, table: Float[Array, "k d"]) -> tuple[Float[Array, "d k"], Float[Array, "k"]]:
    """Kernel and bias of an owner. At first an embedding's class has score 1, and others by how alike theirs are.

    Drawn at random, it would make classes share embeddings, as it cannot tell which is whose.
    """

    def like_table(key: Any) -> Array:
        del key
        return (table / jnp.mean(jnp.sum(table**2, axis=1))).T.astype(jnp.float32)

    kernel = owner.param("kernel", like_table).astype(table.dtype)
    return kernel, owner.param("bias", nn.initializers.zeros, table.shape[:1]).astype(table.dtype)


def expected(logits: Float[Array, "b k"], table: Float[Array, "k d"]) -> Float[Array, "b d"]:
    """The mean embedding under the guessed probabilities."""
    return nn.softmax(logits) @ table


def noprop(
    steps: int = 10,
    classes: int = 10,
    embedding: str = "one_hot",
    features: int = 20,
    width: float = 1.0,
    dropout: float = 0.2,
    *,
    prototypes: Prototypes | None = None,
) -> tuple[nn.Module, ...]:
    """``steps`` denoisers after the unit of the labels, and the end of the baseline.

    Args:
      steps: :math:`T`.
      classes: k.
      embedding: ``one_hot``, ``learned`` (orthogonal at first), or ``prototype``: an image of each class.
      features: d, of learned embeddings.
      width: of all hidden layers, relative to the paper's.
      dropout: after every convolution.
      prototypes: gives the embeddings ``[k, d]`` of that kind when the network is initialised.

    Raises:
      ValueError: if a number is out of range, the embedding is not known, or prototypes are missing.
    """
    if min(steps, classes, features) < 1 or width <= 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"steps {steps}, classes {classes}, features {features}, width {width}, dropout {dropout}: give 1 or more "
            "of the first three, a positive width, and a dropout of 0 or more, below 1"
        )
    if embedding not in EMBEDDINGS:
        raise ValueError(f"embedding {embedding!r}: choose one of {', '.join(EMBEDDINGS)}")
    if embedding == "prototype" and prototypes is None:
        raise ValueError("embedding 'prototype' needs the prototypes of a data set")
    label = LabelUnit(classes, features, embedding, prototypes if embedding == "prototype" else None)
    return (label, *(Denoiser(classes, width, dropout) for _ in range(steps)), Answer())


def denoising_units(units: Sequence[nn.Module], num_classes: int) -> tuple[LabelUnit, tuple[Denoiser, ...]]:
    """The owner of the labels and the denoisers among the units of :func:`noprop`.

    Raises:
      ValueError: if they are of another network, or of another number of classes.
    """
    first, *denoisers = units[:-1] or (None,)
    if not (isinstance(first, LabelUnit) and isinstance(units[-1], Answer)):
        raise ValueError("noprop trains the model noprop, whose units denoise a label: give model.name=noprop")
    if first.classes != num_classes:
        raise ValueError(f"model noprop has {first.classes} classes, the data {num_classes}: give model.classes")
    return first, tuple(unit for unit in denoisers if isinstance(unit, Denoiser))
