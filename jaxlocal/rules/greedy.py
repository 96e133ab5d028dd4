"""Greedy heads: a linear classifier on each block's pooled output, the plainest local rule.

References:
  Belilovsky, Eickenberg, Oyallon. Greedy Layerwise Learning Can Scale to ImageNet.
  ICML 2019 (depth k = 1; here all blocks train at once).
"""

from jaxlocal.heads import Classifier
from jaxlocal.losses import Loss, cross_entropy
from jaxlocal.network import Network
from jaxlocal.objective import readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut


def greedy(*, loss: Loss = cross_entropy) -> Rule:
    """Global average pool and a dense layer at every cut.

    Args:
      loss: of every readout.
    """

    def rule(network: Network, num_classes: int) -> tuple[Network, LocalRule]:
        head = Classifier(num_classes)
        return network, at_each_cut(network, num_classes, lambda _: readout(head, loss), loss)

    return rule
