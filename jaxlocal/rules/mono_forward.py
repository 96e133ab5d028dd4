r"""Mono-Forward: a layer's activities, projected, are its class scores.

.. math:: \ell_i = \mathrm{CE}(a_i M_i^\top,\; y)

with a matrix :math:`M_i` of :math:`k` rows for each layer, learned with it. So one pass tells the goodness of every
class, for which Forward-Forward takes a pass each.

References:
  Gong, Li, Abdulla. Mono-Forward: Backpropagation-Free Algorithm for Efficient Neural Network Training Harnessing Local
  Errors. arXiv 2501.09238.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal.layers import as_image, dense, flatten
from jaxlocal.network import Network
from jaxlocal.readouts import readout
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task


class Projection(nn.Module):
    """A dense layer without bias on everything that a block puts out: no pool, ``[b, k]``.

    Attributes:
      num_classes: k.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b k"]:
        del train
        return dense(flatten(as_image(x)), self.num_classes, use_bias=False, name="dense")


def mono_forward() -> Rule:
    """Mono-Forward on any network; the last block's projection is the network's output.

    Raises:
      ValueError: when it meets a task whose every position answers.
    """

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        objective = readout(Projection(task.once("mono_forward")), task.loss)
        return network, LocalRule((objective,) * (len(network.cuts) + 1))

    return rule
