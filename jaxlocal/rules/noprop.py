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

import flax.linen as nn
import jax.numpy as jnp

from jaxlocal import losses
from jaxlocal.diffusion import Schedule, cosine_schedule, gaussian_kl, noised, normal, normal_of
from jaxlocal.feed import Feed
from jaxlocal.layers import in_float32
from jaxlocal.losses import Loss
from jaxlocal.models.noprop import Diffusion, denoising_units
from jaxlocal.network import Network, cut_everywhere
from jaxlocal.objective import Batch, Carry, LocalObjective, ObjectiveOut, headless
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task
from jaxlocal.variables import Key, Variables


def _feed(schedule: Schedule, eta: float, stochastic: bool) -> Feed:
    """Noised labels in training; the blocks one after another otherwise. Weights are the steps' own.

    All that differs between the steps is here, so that their blocks are equal, and are compiled once.
    """

    def feed(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
        if index == 0:
            return batch.input
        assert isinstance(previous, Diffusion)
        z = previous.z
        if train:
            z = noised(previous.embedding(batch.label), schedule.signal[index - 1], normal(key, z))
        elif index > 1:
            z = schedule.mean(index - 1, previous.guess(), z)
            z += math.sqrt(schedule.posterior(index - 1)[2]) * normal_of(batch.input, index - 1, z) if stochastic else 0
        weight = eta / 2 * (schedule.snr(index) - schedule.snr(index - 1))
        return previous._replace(z=z, weight=jnp.full_like(previous.weight, weight))

    return feed


def _label_objective(schedule: Schedule, loss: Loss) -> LocalObjective:
    """Of the block that owns embeddings and output head."""

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        del variables
        assert isinstance(carry, Diffusion)
        u = carry.embedding(batch.label)
        noise = normal(key, u) if train else normal_of(batch.input, len(schedule.signal), u)
        logits = in_float32(carry.answer(noised(u, schedule.signal[-1], noise)))
        value = jnp.mean(loss(logits, batch.label) + gaussian_kl(in_float32(u), schedule.signal[0]))
        # What it is judged by is what it knows of the image: nothing yet.
        answer = logits if train else in_float32(carry.answer(carry.z))
        return ObjectiveOut(value, {}, {"accuracy": losses.accuracy(answer, batch.label)}, answer)

    return headless(apply)


def _denoising(schedule: Schedule | None) -> LocalObjective:
    """Of the block of one step; the last one has the schedule, and asks the output head."""

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        del variables, key, train
        assert isinstance(carry, Diffusion)
        guess, u = in_float32(carry.guess()), in_float32(carry.embedding(batch.label))
        error = jnp.sum((guess - u) ** 2, axis=-1)
        last = schedule and carry.answer(schedule.mean(-1, carry.guess(), carry.z))
        logits = in_float32(carry.logits if last is None else last)
        metrics = {"accuracy": losses.accuracy(logits, batch.label), "error": jnp.mean(error)}
        return ObjectiveOut(jnp.mean(in_float32(carry.weight) * error), {}, metrics, logits)

    return headless(apply)


def noprop_dt(eta: float = 0.1, offset: float = 0.008, stochastic: bool = False) -> Rule:
    r"""NoProp in discrete time, on the network of :func:`jaxlocal.models.noprop`: every unit is a block.

    Args:
      eta: :math:`\eta`, the weight of the denoising.
      offset: of :func:`cosine_schedule`; the higher, the noisier the last step.
      stochastic: whether noise is added between the steps of a prediction; it follows from the image.

    Raises:
      ValueError: if eta or the offset is not positive, or (when the rule meets a network) the network is another one.
    """
    if eta <= 0 or offset <= 0:
        raise ValueError(f"noprop_dt: eta {eta} and offset {offset} given; choose positive ones")

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        label, denoisers = denoising_units(network.units, task.once("noprop_dt"))
        schedule = cosine_schedule(len(denoisers), offset)
        units: tuple[nn.Module, ...] = (label.clone(head=True), *(d.clone(moves=False) for d in denoisers))
        steps = (*((_denoising(None),) * (len(denoisers) - 1)), _denoising(schedule))
        objectives = (_label_objective(schedule, task.loss), *steps)
        return Network(units, cut_everywhere(units)), LocalRule(objectives, _feed(schedule, eta, stochastic))

    return rule
