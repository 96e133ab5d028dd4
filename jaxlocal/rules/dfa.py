r"""DFA: the network's error goes straight to every hidden layer, through random matrices.

.. math:: \delta y_k = e\, B_k, \qquad e = \frac{\partial L}{\partial \hat y}

(Nokland 2016, equation 8), or the sign of :math:`e` for sDFA (Frenkel et al. 2021). Layers are isolated from each
other's gradients, but all wait for the error, so their outputs are kept: one block holds the whole network.

References:
  Nokland. Direct Feedback Alignment Provides Learning in Deep Neural Networks. NeurIPS 2016. arXiv 1609.01596.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlocal.network import Network, cut_everywhere
from jaxlocal.objective import Batch, Carry, LocalObjective, ObjectiveOut, detached, isolated, no_sync
from jaxlocal.readouts import random_projection
from jaxlocal.rule import LocalRule, Rule, output
from jaxlocal.task import Task
from jaxlocal.variables import Key, Variables, nest, pick


class Isolated(nn.Module):
    """A unit that no gradient passes: its outputs and those of the units before it, in order.

    Attributes:
      unit: that computes.
    """

    unit: nn.Module

    @nn.compact
    def __call__(self, carry: Array | tuple[Array, ...], *, train: bool) -> tuple[Array, ...]:
        outputs = carry if isinstance(carry, tuple) else ()
        x = outputs[-1] if outputs else carry
        return (*outputs, self.unit(isolated(x), train=train))


def _feedback(inner: LocalObjective, task: Task, sign: bool) -> LocalObjective:
    """Trains the network's output alone by the inner objective, and everything before it by the projected error."""

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        head_key, *keys = jax.random.split(key, 1 + len(carry))
        matrices = {
            str(i): random_projection(key, task.num_classes, x.shape[1 + task.each :])
            for i, (key, x) in enumerate(zip(keys, carry, strict=True))
        }
        return nest(output=inner.init(head_key, carry[-1], batch), feedback={"fixed": matrices})

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        out = inner.apply(pick(variables, "output"), carry[-1], batch, key, train=train)
        assert out.logits is not None
        error = jax.grad(lambda logits: jnp.sum(task.loss(logits, batch.label)))(jax.lax.stop_gradient(out.logits))
        error = jnp.sign(error) if sign else error
        signal = jnp.zeros((), out.loss.dtype)
        for i, x in enumerate(carry):
            matrix = variables["fixed"]["feedback"][str(i)].astype(error.dtype)
            delta = jnp.tensordot(error, matrix, 1).reshape(x.shape)
            signal += jnp.sum(x.astype(error.dtype) * delta) / len(error)
        # The outputs' gradient is the signal's; the loss that is reported stays the network's own.
        total = out.loss + signal - jax.lax.stop_gradient(signal)
        return out._replace(loss=total, mutated=nest(output=out.mutated))

    return LocalObjective(init, apply, no_sync)


def dfa(sign: bool = False) -> Rule:
    """DFA on any network of units: every unit is isolated, whatever the cuts were.

    Args:
      sign: whether only the error's sign is projected (sDFA).
    """

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        apart = network._replace(cuts=cut_everywhere(network.units))
        units = tuple(Isolated(unit) for unit in network.units)
        return Network(units), LocalRule((_feedback(detached(output(apart, task)), task, sign),))

    return rule
