r"""Forward-Forward: every layer learns to be active under the true label, and quiet under a wrong one.

The label, one-hot, is written over the first :math:`k` pixels. With :math:`g`, a layer's goodness, the mean (or the
sum) of its squared activities, each layer minimises

.. math:: \log(1 + e^{\theta - g^+}) + \log(1 + e^{g^- - \theta})

of a positive example, with the true label, and a negative one, with a wrong label (equation 1 and section 3.3). Before
the next layer the length of the vector is normalised away: it would tell that layer what this one has found.

References:
  Hinton. The Forward-Forward Algorithm: Some Preliminary Investigations. arXiv 2212.13345, sections 2 and 3.3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlocal import losses
from jaxlocal.feed import Feed
from jaxlocal.layers import in_float32
from jaxlocal.models.forward_forward import EachPass, NegativeUnit, Passes, Softmax, normalised
from jaxlocal.models.mlp import DenseUnit
from jaxlocal.network import Network
from jaxlocal.objective import Batch, Carry, LocalObjective, ObjectiveOut, headless, weighted_sum
from jaxlocal.readouts import readout
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task
from jaxlocal.variables import Key, Variables


def _goodness(x: Float[Array, "b p f"], total: bool) -> Float[Array, "b p"]:
    return (jnp.sum if total else jnp.mean)(in_float32(x) ** 2, axis=-1)


def _feed(k: int, total: bool, beliefs: bool) -> Feed:
    """Images with labels on them into block 0; between blocks lengths are normalised, goodness is added up."""

    def feed(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
        if index:
            x, good, seen, _ = previous
            if index > 1:
                good = good if train else good + _goodness(x[:, :k], total).astype(good.dtype)
                seen = (*seen, normalised(x[:, -1]))
            return Passes(normalised(x), good, seen)
        image = batch.input if batch.pixels is None else batch.pixels
        image, b = image.reshape(len(image), -1), len(image)
        if image.shape[1] <= k:
            raise ValueError(f"forward_forward: labels take {k} pixels of an image, which has {image.shape[1]}")
        wrong = (batch.label + jax.random.randint(key, (b,), 1, k)) % k
        shown = batch.label[:, None] if beliefs else jnp.stack((batch.label, wrong), axis=1)
        shown = shown if train else jnp.broadcast_to(jnp.arange(k), (b, k))
        neutral = jnp.full((b, 1, k), 1 / k, image.dtype)
        labels = jnp.concatenate((jax.nn.one_hot(shown, k, dtype=image.dtype), neutral), axis=1)
        rest = jnp.broadcast_to(image[:, None, k:], (b, labels.shape[1], image.shape[1] - k))
        return Passes(normalised(jnp.concatenate((labels, rest), axis=2)), jnp.zeros((b, k), image.dtype))

    return feed


def _contrast(task: Task, k: int, threshold: float, total: bool) -> LocalObjective:
    """Of every block, on top of what the first one believes; in evaluation the mean over all wrong labels."""

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        del variables, key
        assert isinstance(carry, Passes)
        g, theta = _goodness(carry.x, total), threshold * carry.x.shape[-1] if total else threshold
        if train:
            value = jax.nn.softplus(theta - g[:, 0]) + jax.nn.softplus(g[:, 1] - theta)
            believed = 0.0 if carry.beliefs is None else task.loss(in_float32(carry.beliefs), batch.label)
            return ObjectiveOut(jnp.mean(value + believed), {}, {"contrast": jnp.mean(value)}, None)
        true, g = jax.nn.one_hot(batch.label, k, dtype=g.dtype), g[:, :k]
        wrong = (1 - true) / (k - 1)
        value = true * jax.nn.softplus(theta - g) + wrong * jax.nn.softplus(g - theta)
        logits = in_float32(carry.goodness) + g
        return ObjectiveOut(jnp.mean(jnp.sum(value, 1)), {}, {"accuracy": losses.accuracy(logits, batch.label)}, logits)

    return headless(apply)


def forward_forward(
    threshold: float = 2.0, total: bool = False, negatives: str = "beliefs", prediction: str = "goodness"
) -> Rule:
    r"""Forward-Forward, supervised, on an MLP: each block is a layer with a loss of its own.

    Args:
      threshold: :math:`\theta`, of the mean of squares; times the layer's width where goodness is their sum.
      total: whether goodness is the sum of squares, as in the paper, in place of their mean.
      negatives: how wrong labels are drawn: by ``beliefs``, a softmax on the first layer, or ``uniform``.
      prediction: at the network's end, by ``goodness`` or by the ``softmax``. Exits before it predict by goodness.

    Raises:
      ValueError: if a name is not known, or the threshold not positive; if the network is not of dense layers without
        batch norm, or one block; if an image has no more pixels than there are classes.
    """
    if threshold <= 0 or negatives not in ("beliefs", "uniform") or prediction not in ("goodness", "softmax"):
        raise ValueError(
            f"forward_forward: threshold {threshold}, negatives {negatives!r}, prediction {prediction!r} given; choose "
            "one above 0, beliefs or uniform, goodness or softmax"
        )

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        k, beliefs = task.once("forward_forward"), negatives == "beliefs"
        if not network.cuts or any(not isinstance(unit, DenseUnit) or unit.norm for unit in network.units):
            raise ValueError(
                "forward_forward: give an mlp without batch norm, which would fix the goodness, in 2 blocks or more"
            )
        first, *others = network.units
        start = NegativeUnit(first, k) if beliefs else EachPass(first)
        contrast = _contrast(task, k, threshold, total)
        terms = {"goodness": (1.0, contrast), "softmax": (1.0, readout(Softmax(k), task.loss))}
        last = weighted_sum(**{name: terms[name] for name in sorted(terms, key=lambda name: name != prediction)})
        units = Network((start, *map(EachPass, others)), network.cuts)
        return units, LocalRule((contrast,) * len(network.cuts) + (last,), _feed(k, total, beliefs))

    return rule
