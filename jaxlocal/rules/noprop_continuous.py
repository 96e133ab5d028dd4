"""NoProp in continuous time, and by flow matching: one block that denoises the label at any time.

References:
  Li, Teh, Pascanu. NoProp: Training Neural Networks without Full Back-propagation or Full
  Forward-propagation. arXiv 2503.24322, sections 3.2 and 3.3.
"""

import math

import jax.numpy as jnp

from jaxlocal import losses
from jaxlocal.diffusion import gaussian_kl
from jaxlocal.losses import Loss
from jaxlocal.models.noprop import denoising_units
from jaxlocal.models.noprop_continuous import ContinuousUnit, Labelled, Terms
from jaxlocal.network import Network
from jaxlocal.objective import Batch, Carry, LocalObjective, ObjectiveOut, headless
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task
from jaxlocal.variables import Key, Variables


def _with_labels(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
    """The feed of continuous time: one block, which draws time and noise itself."""
    del index, previous, key
    return Labelled(batch.input, batch.label) if train else batch.input


def _continuous(weight: float, head: bool, signal: float, loss: Loss) -> LocalObjective:
    """Error of the guesses; loss of the output ``head`` and KL at time 0, which train the embeddings too."""

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        del variables, key
        if not train:
            value = jnp.mean(loss(carry, batch.label))
            return ObjectiveOut(value, {}, {"accuracy": losses.accuracy(carry, batch.label)}, carry)
        assert isinstance(carry, Terms)
        error = jnp.mean(carry.error)
        value = weight * error + jnp.mean(gaussian_kl(carry.u, signal))
        value += jnp.mean(loss(carry.answer, batch.label)) if head else 0.0
        metrics = {"accuracy": losses.accuracy(carry.guess, batch.label), "error": error}
        return ObjectiveOut(value, {}, metrics, carry.guess)

    return headless(apply)


def noprop_ct(eta: float = 1.0, end: float = 7.0, steps: int = 1000, solver: str = "euler") -> Rule:
    r"""NoProp in continuous time, with one denoiser of :func:`jaxlocal.models.noprop`, and a learned schedule.

    .. math:: -\log p(y \mid z_1) + \mathrm{KL}(q(z_0 \mid y) \,\|\, \mathcal N(0, 1))
              + \tfrac\eta2\, E_t[\mathrm{SNR}'(t)\, \|\hat u(z_t, x, t) - u_y\|^2]

    (section 3.2). Predictions follow the probability flow.

    Args:
      eta: :math:`\eta`.
      end: of the schedule, :math:`\mathrm{SNR}(1) = 1 / \mathrm{SNR}(0) = e^\mathrm{end}`.
      steps: of a prediction.
      solver: ``euler`` or ``heun``.

    Raises:
      ValueError: if an option is out of range, or (when the rule meets a network) the network is another one.
    """
    _check_continuous("noprop_ct", min(eta, end), steps, solver)

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        label, (denoiser, *_) = denoising_units(network.units, task.once("noprop_ct"))
        unit = ContinuousUnit(
            label.clone(head=True), denoiser.width, denoiser.dropout, end=end, steps=steps, solver=solver
        )
        signal = 1 / (1 + math.exp(end))
        return Network((unit,)), LocalRule((_continuous(eta / 2, True, signal, task.loss),), _with_labels)

    return rule


def noprop_fm(sigma: float = 0.0, steps: int = 1000, solver: str = "euler") -> Rule:
    r"""NoProp by flow matching: straight lines from noise to the label's embedding.

    .. math:: E_t \|v(z_t, x, t) - (u_y - z_0)\|^2, \qquad z_t \sim \mathcal N(t\, u_y + (1 - t)\, z_0,\; \sigma^2)

    (section 3.3); where embeddings are learned, plus the loss of the output head at the end that a velocity points to.
    Predicted is the class of the nearest embedding, or by the output head.

    Args:
      sigma: :math:`\sigma`.
      steps: of a prediction.
      solver: ``euler`` or ``heun``.

    Raises:
      ValueError: if an option is out of range, or (when the rule meets a network) the network is another one.
    """
    _check_continuous("noprop_fm", 1.0, steps, solver)
    if sigma < 0:
        raise ValueError(f"noprop_fm: sigma {sigma} given; choose 0 or more")

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        label, (denoiser, *_) = denoising_units(network.units, task.once("noprop_fm"))
        learned = label.embedding == "learned"
        of_labels, width, dropout = label.clone(head=learned), denoiser.width, denoiser.dropout
        unit = ContinuousUnit(of_labels, width, dropout, flow=True, sigma=sigma, steps=steps, solver=solver)
        return Network((unit,)), LocalRule((_continuous(1.0, learned, 0.0, task.loss),), _with_labels)

    return rule


def _check_continuous(name: str, positive: float, steps: int, solver: str) -> None:
    if positive <= 0 or steps < 1 or solver not in ("euler", "heun"):
        raise ValueError(
            f"{name}: weight or end {positive}, steps {steps}, solver {solver!r} given; choose positive numbers, "
            "1 or more steps, and euler or heun"
        )
