"""Greedy heads: a linear classifier on each block's pooled output, the plainest local rule.

References:
  Belilovsky, Eickenberg, Oyallon. Greedy Layerwise Learning Can Scale to ImageNet.
  ICML 2019 (depth k = 1; here all blocks train at once).
"""

from jaxlocal.heads import classifier
from jaxlocal.network import Network
from jaxlocal.readouts import readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut
from jaxlocal.task import Task


def greedy(tokens: int = 1) -> Rule:
    """The network's plain head at every cut: a dense layer behind a pool, or a transformer's norm and unembedding.

    Args:
      tokens: that each position tells at a cut, as in :func:`jaxlocal.readout`.
    """

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        head = readout(classifier(network.units, task), task.loss, tokens)
        return network, at_each_cut(network, task, lambda _: head)

    return rule
