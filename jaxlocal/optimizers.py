"""Optimizers and the learning-rate schedule of the papers."""

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
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, weight_decay: float = 1e-3
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Raises:
      ValueError: if a decay rate is not in [0, 1), or the weight decay negative.
    """
    if not 0 <= b1 < 1 or not 0 <= b2 < 1 or weight_decay < 0:
        raise ValueError(f"b1 {b1}, b2 {b2}, weight_decay {weight_decay}: choose 0 or more, the first two below 1")
    return optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
