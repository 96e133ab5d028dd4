"""Decoupled greedy learning: a small convolutional and dense head at every cut.

References:
  Belilovsky, Eickenberg, Oyallon. Decoupled Greedy Learning of CNNs. ICML 2020,
  section 4.1 and appendix (the head called MLP-SR-aux).
"""

from jaxlocal.heads import ConvMlp
from jaxlocal.losses import Loss, cross_entropy
from jaxlocal.network import Network
from jaxlocal.objective import readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut


def dgl(width: float = 1.0, *, loss: Loss = cross_entropy) -> Rule:
    """DGL, all blocks updated in every step (the paper's synchronous form).

    Args:
      width: of the heads' hidden layers, relative to the paper's.
      loss: of every readout.
    """

    def rule(network: Network, num_classes: int) -> tuple[Network, LocalRule]:
        head = ConvMlp(num_classes, width)
        return network, at_each_cut(network, num_classes, lambda _: readout(head, loss), loss)

    return rule
