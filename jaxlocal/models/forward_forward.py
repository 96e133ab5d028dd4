"""Dense layers that compute several passes of an example side by side, for Forward-Forward.

References:
  Hinton. The Forward-Forward Algorithm: Some Preliminary Investigations. arXiv 2212.13345, section 3.3.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlocal.layers import dense, in_float32
from jaxlocal.objective import isolated


class Passes(NamedTuple):
    """What flows from layer to layer.

    Attributes:
      x: ``[b, p, f]``, of p passes: in training under the true, a wrong and the neutral label, else under each of the k
        labels and the neutral one.
      goodness: ``[b, k]``, under each of the labels, the sum over the layers so far but the first; zeros in training.
      seen: ``[b, f]`` each, those layers' normalised activities under the neutral label.
      beliefs: ``[b, k]``, class scores by the first layer; None where no negatives are drawn by them.
    """

    x: Float[Array, "b p f"]
    goodness: Float[Array, "b k"]
    seen: tuple[Float[Array, "b f"], ...] = ()
    beliefs: Float[Array, "b k"] | None = None


def normalised(x: Float[Array, "... f"]) -> Float[Array, "... f"]:
    """The vector at a mean square of one."""
    wide = in_float32(x)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-8)).astype(x.dtype)


class Softmax(nn.Module):
    """Class scores in one pass: off the normalised activities of this layer and those seen, under the neutral label.

    Returns ``[b, k]``. It learns by itself: no gradient reaches the layers.

    Attributes:
      num_classes: k.
    """

    num_classes: int

    @nn.compact
    def __call__(self, carry: Passes, *, train: bool) -> Float[Array, "b k"]:
        del train
        features = jnp.concatenate((*carry.seen, normalised(carry.x[:, -1])), axis=1)
        return dense(isolated(features), self.num_classes, use_bias=False, zero=True, name="dense")


class EachPass(nn.Module):
    """A unit on every pass; its variables are the unit's own.

    Attributes:
      unit: that computes.
    """

    unit: nn.Module

    def setup(self) -> None:
        """A network trained by another rule has the same variables."""
        nn.share_scope(self, self.unit)

    def __call__(self, carry: Passes, *, train: bool) -> Passes:
        return carry._replace(x=_of_each(self.unit, carry.x, train))


class NegativeUnit(nn.Module):
    """The first unit, which makes the wrong label's pass in training: of a label that is drawn by what it believes.

    Its input then has the passes under the true and the neutral label. The true one is never drawn, others in
    proportion to their probability.

    Attributes:
      unit: that computes.
      num_classes: k.
    """

    unit: nn.Module
    num_classes: int

    def setup(self) -> None:
        """As in :class:`EachPass`."""
        nn.share_scope(self, self.unit)

    @nn.compact
    def __call__(self, carry: Passes, *, train: bool) -> Passes:
        x, k = carry.x[:, :-1], self.num_classes
        neutral = _of_each(self.unit, carry.x[:, -1:], train)
        beliefs = Softmax(k, name="beliefs")(carry._replace(x=neutral), train=train)
        if train:
            true = x[:, 0, :k]  # one-hot, over the length that the vector was divided by
            possible = jnp.where(true > 0, -jnp.inf, in_float32(beliefs))
            drawn = jax.random.categorical(self.make_rng("dropout"), possible)
            wrong = jnp.sum(true, axis=1, keepdims=True) * jax.nn.one_hot(drawn, k, dtype=x.dtype)
            x = jnp.stack((x[:, 0], jnp.concatenate((wrong, x[:, 0, k:]), axis=1)), axis=1)
        labelled = _of_each(self.unit, x, train)
        return carry._replace(x=jnp.concatenate((labelled, neutral), axis=1), beliefs=beliefs)


def _of_each(unit: nn.Module, x: Float[Array, "b p f"], train: bool) -> Float[Array, "b p g"]:
    return unit(x.reshape(-1, x.shape[-1]), train=train).reshape(*x.shape[:2], -1)
