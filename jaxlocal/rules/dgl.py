"""Decoupled greedy learning: a small convolutional and dense head at every cut.

References:
  Belilovsky, Eickenberg, Oyallon. Decoupled Greedy Learning of CNNs. ICML 2020,
  section 4.1 and appendix (the head called MLP-SR-aux).
"""

from jaxlocal.heads import ConvMlp
from jaxlocal.losses import Loss, cross_entropy
from jaxlocal.network import Network
from jaxlocal.rule import LocalRule, Rule, head_at_each_cut


def dgl(*, loss: Loss = cross_entropy) -> Rule:
    """DGL, all blocks updated in every step (the paper's synchronous form).

    Args:
      loss: of every readout.
    """

    def rule(network: Network, num_classes: int) -> tuple[Network, LocalRule]:
        return network, head_at_each_cut(network, num_classes, lambda _: ConvMlp(num_classes), loss)

    return rule
