r"""NoProp in discrete time: every block learns by itself to denoise the label, without a pass through others.

With class embeddings :math:`u_y` and a schedule :math:`\bar\alpha_t` that rises from noise to label,

.. math:: q(z_t \mid y) = \mathcal N(\sqrt{\bar\alpha_t}\, u_y,\; 1 - \bar\alpha_t)

(section 2.2). Block :math:`t` sees the image and :math:`z_{t-1}`, drawn from :math:`q`, and minimises

.. math:: \tfrac\eta2\, (\mathrm{SNR}(t) - \mathrm{SNR}(t-1))\, \|\hat u_t(z_{t-1}, x) - u_y\|^2,
          \qquad \mathrm{SNR}(t) = \bar\alpha_t / (1 - \bar\alpha_t),

its share of the paper's objective (equation 8). The first block owns what all blocks read, the embeddings and the
output head, and minimises the rest, :math:`-\log p(y \mid z_T) + \mathrm{KL}(q(z_0 \mid y) \,\|\, \mathcal N(0, 1))`.
To predict, blocks follow each other:

.. math:: z_t = a_t\, \hat u_t + b_t\, z_{t-1} + \sqrt{c_t}\, \epsilon

with the coefficients of the posterior (equation 6).

References:
  Li, Teh, Pascanu. NoProp: Training Neural Networks without Full Back-propagation or Full
  Forward-propagation. arXiv 2503.24322.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlocal import losses
from jaxlocal.feed import Feed
from jaxlocal.losses import Loss, cross_entropy
from jaxlocal.models.noprop import Answer, Denoiser, Diffusion, LabelUnit, expected, normal
from jaxlocal.network import Network, cut_everywhere
from jaxlocal.objective import Batch, Carry, LocalObjective, ObjectiveOut, no_sync, same_for_equal_arguments
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.variables import Key, Variables


class Schedule(NamedTuple):
    r"""Signal and noise of the steps, ``T + 1`` numbers from noise to label.

    Attributes:
      signal: :math:`\bar\alpha_0 \dots \bar\alpha_T`, rising, in [0, 1).
    """

    signal: tuple[float, ...]

    def snr(self, t: int) -> float:
        """Signal over noise, as variances."""
        return self.signal[t] / (1 - self.signal[t])

    def posterior(self, t: int) -> tuple[float, float, float]:
        r"""``(a, b, c)`` of :math:`q(z_t \mid z_{t-1}, y) = \mathcal N(a\, u_y + b\, z_{t-1},\; c)`, t from 1."""
        before, after = self.signal[t - 1], self.signal[t]
        alpha = before / after
        a = math.sqrt(after) * (1 - alpha) / (1 - before)
        b = math.sqrt(alpha) * (1 - after) / (1 - before)
        return a, b, (1 - after) * (1 - alpha) / (1 - before)


def cosine_schedule(steps: int, offset: float = 0.008) -> Schedule:
    r"""Nichol and Dhariwal's (2021, equation 17), from its end to its beginning.

    .. math:: \bar\alpha_t = \cos^2\!\left(\frac{1 - t / T + s}{1 + s} \cdot \frac\pi2\right)

    Args:
      steps: :math:`T`.
      offset: :math:`s`.
    """
    angles = (1 - np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2
    return Schedule(tuple(np.square(np.cos(angles)).tolist()))


def noised(u: Float[Array, "b d"], signal: float, key: Key) -> Float[Array, "b d"]:
    """A draw from :math:`q(z | y)`."""
    return math.sqrt(signal) * u + math.sqrt(1 - signal) * normal(key, u)


@same_for_equal_arguments
def _feed(schedule: Schedule, stochastic: bool) -> Feed:
    """Noised labels in training; the blocks one after another otherwise."""

    def feed(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
        if index == 0:
            return batch.image
        assert isinstance(previous, Diffusion)
        if train:
            return previous._replace(z=noised(previous.table[batch.label], schedule.signal[index - 1], key))
        if index == 1 or not stochastic:
            return previous
        noise = math.sqrt(schedule.posterior(index - 1)[2])
        return previous._replace(z=previous.z + noise * normal(key, previous.z))

    return feed


def headless(key: Key, carry: Carry, batch: Batch) -> Variables:
    """The ``init`` of objectives without parameters of their own."""
    del key, carry, batch
    return {}


def wide(x: Array) -> Array:
    """In float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@same_for_equal_arguments
def _label_objective(schedule: Schedule, loss: Loss) -> LocalObjective:
    """Of the block that owns embeddings and output head."""

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        del variables
        assert isinstance(carry, Diffusion)
        u = carry.table[batch.label]
        logits = wide(carry.answer(noised(u, schedule.signal[-1], key)))
        kl = gaussian_kl(wide(u), schedule.signal[0])
        value = jnp.mean(loss(logits, batch.label) + kl)
        # What it is judged by is what it knows of the image: nothing yet.
        answer = logits if train else wide(carry.answer(carry.z))
        return ObjectiveOut(value, {}, {"accuracy": losses.accuracy(answer, batch.label)}, answer)

    return LocalObjective(headless, apply, no_sync)


def gaussian_kl(u: Float[Array, "b d"], signal: float) -> Float[Array, "b"]:
    r""":math:`\mathrm{KL}(\mathcal N(\sqrt{s}\, u,\, 1 - s) \,\|\, \mathcal N(0, 1))` at signal :math:`s`."""
    d = u.shape[-1]
    return (signal * jnp.sum(u**2, axis=-1) - d * signal - d * math.log1p(-signal)) / 2


@same_for_equal_arguments
def _denoising(weight: float, last: bool) -> LocalObjective:
    """Of the block of one step."""

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        del variables, key, train
        assert isinstance(carry, Diffusion)
        guess, u = wide(expected(carry.logits, carry.table)), wide(carry.table[batch.label])
        error = jnp.mean(jnp.sum((guess - u) ** 2, axis=-1))
        logits = wide(carry.answer(carry.z) if last else carry.logits)
        metrics = {"accuracy": losses.accuracy(logits, batch.label), "error": error}
        return ObjectiveOut(weight * error, {}, metrics, logits)

    return LocalObjective(headless, apply, no_sync)


def noprop_dt(eta: float = 0.1, offset: float = 0.008, stochastic: bool = False, *, loss: Loss = cross_entropy) -> Rule:
    r"""NoProp in discrete time, on the network of :func:`jaxlocal.models.noprop`: every unit is a block.

    Args:
      eta: :math:`\eta`, the weight of the denoising.
      offset: of :func:`cosine_schedule`; the higher, the noisier the last step.
      stochastic: whether noise is added between the steps of a prediction.
      loss: of the output head.

    Raises:
      ValueError: if eta or the offset is not positive, or (when the rule meets a network) the network is another one.
    """
    if eta <= 0 or offset <= 0:
        raise ValueError(f"noprop_dt: eta {eta} and offset {offset} given; choose positive ones")

    def rule(network: Network, num_classes: int) -> tuple[Network, LocalRule]:
        label, denoisers = parts(network, num_classes)
        schedule = cosine_schedule(len(denoisers), offset)
        units: list[nn.Module] = [label.clone(head=True)]
        objectives = [_label_objective(schedule, loss)]
        for t, denoiser in enumerate(denoisers, 1):
            units.append(denoiser.clone(shares=schedule.posterior(t)[:2]))
            weight = eta / 2 * (schedule.snr(t) - schedule.snr(t - 1))
            objectives.append(_denoising(weight, last=t == len(denoisers)))
        return Network(tuple(units), cut_everywhere(units)), LocalRule(tuple(objectives), _feed(schedule, stochastic))

    return rule


def parts(network: Network, num_classes: int) -> tuple[LabelUnit, tuple[Denoiser, ...]]:
    """The owner of the labels and the denoisers of a network of :func:`jaxlocal.models.noprop`.

    Raises:
      ValueError: if it is another one, or has another number of classes.
    """
    label, *denoisers, end = (None, *network.units) if len(network.units) < 3 else network.units
    if not (isinstance(label, LabelUnit) and isinstance(end, Answer)):
        raise ValueError("noprop trains the model noprop, whose units denoise a label: give model.name=noprop")
    if label.classes != num_classes:
        raise ValueError(f"model noprop has {label.classes} classes, the data {num_classes}: give model.classes")
    return label, tuple(unit for unit in denoisers if isinstance(unit, Denoiser))
