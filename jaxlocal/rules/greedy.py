"""Greedy heads: a linear classifier on each block's pooled output, the plainest local rule.

References:
  Belilovsky, Eickenberg, Oyallon. Greedy Layerwise Learning Can Scale to ImageNet.
  ICML 2019 (depth k = 1; here all blocks train at once).
"""

from jaxlocal.heads import Classifier
from jaxlocal.network import Network
from jaxlocal.objective import readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut
from jaxlocal.task import Task


def greedy() -> Rule:
    """Global average pool and a dense layer at every cut."""

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        head = readout(Classifier(task.once("greedy")), task.loss)
        return network, at_each_cut(network, task, lambda _: head)

    return rule
