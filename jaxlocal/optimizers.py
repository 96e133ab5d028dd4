"""Optimizers and the learning-rate schedules of the papers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array


def cosine_with_warmup(
    peak: float, epochs: float, steps_per_epoch: int, warmup_epochs: int = 10, warmup_start: float = 0.01
) -> optax.Schedule:
    r"""The schedule of AugLocal's and MAN's code: constant within an epoch, epochs :math:`e` count from 1.

    .. math::
      \eta_e = c_e \frac{e - 1}{W} + \eta_0 \frac{W + 1 - e}{W} \;\text{for}\; e \le W, \quad
      \eta_e = c_e \;\text{after}, \qquad c_e = \tfrac12 \eta (1 + \cos(\pi e / E))

    so the last epoch has a learning rate of zero.

    Args:
      peak: :math:`\eta`.
      epochs: :math:`E`, of the whole run.
      steps_per_epoch: steps of one epoch.
      warmup_epochs: :math:`W`; 0 for none.
      warmup_start: :math:`\eta_0`.
    """

    def schedule(step: Array | int) -> Array:
        epoch = (1 + jnp.asarray(step) // steps_per_epoch).astype(jnp.float32)
        cosine = 0.5 * peak * (1 + jnp.cos(jnp.pi * jnp.minimum(epoch / epochs, 1.0)))
        if warmup_epochs == 0:
            return cosine
        warming = cosine * (epoch - 1) / warmup_epochs + warmup_start * (warmup_epochs + 1 - epoch) / warmup_epochs
        return jnp.where(epoch <= warmup_epochs, warming, cosine)

    return schedule


def warmup_cosine(peak: float, num_steps: int, warmup_steps: int, end: float) -> optax.Schedule:
    r"""The schedule of nanoGPT, by steps :math:`s` from 0: linear to the peak, then half a cosine to the end.

    .. math::
      \eta_s = \eta \frac{s + 1}{W + 1} \;\text{for}\; s < W, \quad
      \eta_s = \eta_\text{end} + \tfrac12 (\eta - \eta_\text{end}) (1 + \cos(\pi \tfrac{s - W}{S - W})) \;\text{after}

    Args:
      peak: :math:`\eta`.
      num_steps: :math:`S`, of the whole run.
      warmup_steps: :math:`W`.
      end: :math:`\eta_\text{end}`.
    """

    def schedule(step: Array | int) -> Array:
        step = jnp.asarray(step).astype(jnp.float32)
        done = jnp.clip((step - warmup_steps) / (num_steps - warmup_steps), 0.0, 1.0)
        cosine = end + 0.5 * (peak - end) * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(step < warmup_steps, peak * (step + 1) / (warmup_steps + 1), cosine)

    return schedule


def stepwise(peak: float, milestones: Sequence[int], decay: float) -> optax.Schedule:
    """The schedule of PredSim's code: the rate is multiplied by ``decay`` from each of these steps on."""

    def schedule(step: Array | int) -> Array:
        passed = jnp.sum(jnp.asarray(step) >= jnp.asarray(milestones))
        return peak * decay ** passed.astype(jnp.float32)

    return schedule


def sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
    """SGD with momentum; weight decay is added to the gradient, of every parameter (as in PyTorch).

    Raises:
      ValueError: if the momentum is not in [0, 1), or the weight decay negative.
    """
    if not 0 <= momentum < 1 or weight_decay < 0:
        raise ValueError(f"momentum {momentum}, weight_decay {weight_decay}: choose 0 or more, the first below 1")
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov))


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 1e-3,
    matrices: bool = False,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Args:
      learning_rate: or its schedule.
      b1: decay of the first moment.
      b2: decay of the second.
      weight_decay: times the learning rate.
      matrices: whether only tensors of two or more dimensions decay, as is usual for transformers.
      clip: largest norm of a gradient, 0 for any. It is each block's own: a norm over the network would couple blocks.

    Raises:
      ValueError: if a decay rate is not in [0, 1), or the weight decay or the norm negative.
    """
    if not 0 <= b1 < 1 or not 0 <= b2 < 1 or weight_decay < 0 or clip < 0:
        raise ValueError(
            f"b1 {b1}, b2 {b2}, weight_decay {weight_decay}, clip {clip}: choose 0 or more, the first two below 1"
        )

    def mask(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim >= 2, params)

    adam = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask if matrices else None)
    return optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam
