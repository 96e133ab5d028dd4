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

from jaxlocal.heads import Classifier
from jaxlocal.losses import Loss, cross_entropy
from jaxlocal.network import Network
from jaxlocal.objective import (
    Batch,
    Carry,
    LocalObjective,
    ObjectiveOut,
    detached,
    isolated,
    no_sync,
    random_projection,
    readout,
)
from jaxlocal.rule import LocalRule, Rule
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


def _feedback(num_classes: int, loss: Loss, sign: bool) -> LocalObjective:
    """Trains the classifier by the loss, and every output before it by the projected error."""
    inner = detached(readout(Classifier(num_classes), loss))

    def init(key: Key, carry: Carry, batch: Batch) -> Variables:
        head_key, *keys = jax.random.split(key, 1 + len(carry))
        matrices = {
            str(i): random_projection(key, num_classes, output.shape[1:])
            for i, (key, output) in enumerate(zip(keys, carry, strict=True))
        }
        return nest(output=inner.init(head_key, carry[-1], batch), feedback={"fixed": matrices})

    def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
        out = inner.apply(pick(variables, "output"), carry[-1], batch, key, train=train)
        assert out.logits is not None
        error = jax.grad(lambda logits: jnp.sum(loss(logits, batch.label)))(jax.lax.stop_gradient(out.logits))
        error = jnp.sign(error) if sign else error
        signal = jnp.zeros((), out.loss.dtype)
        for i, output in enumerate(carry):
            matrix = variables["fixed"]["feedback"][str(i)].astype(error.dtype)
            delta = jnp.tensordot(error, matrix, 1).reshape(output.shape)
            signal += jnp.sum(output.astype(error.dtype) * delta) / len(error)
        # The outputs' gradient is the signal's; the loss that is reported stays the network's own.
        total = out.loss + signal - jax.lax.stop_gradient(signal)
        return out._replace(loss=total, mutated=nest(output=out.mutated))

    return LocalObjective(init, apply, no_sync)


def dfa(sign: bool = False, *, loss: Loss = cross_entropy) -> Rule:
    """DFA on any network of units: every unit is isolated, whatever the cuts were.

    Args:
      sign: whether only the error's sign is projected (sDFA).
      loss: of the network's output.
    """

    def rule(network: Network, num_classes: int) -> tuple[Network, LocalRule]:
        units = tuple(Isolated(unit) for unit in network.units)
        return Network(units), LocalRule((_feedback(num_classes, loss, sign),))

    return rule
