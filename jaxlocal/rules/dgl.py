"""Decoupled greedy learning: a small convolutional and dense head at every cut.

References:
  Belilovsky, Eickenberg, Oyallon. Decoupled Greedy Learning of CNNs. ICML 2020,
  section 4.1 and appendix (the head called MLP-SR-aux).
"""

from jaxlocal.heads import ConvMlp, classifier
from jaxlocal.network import Network
from jaxlocal.objective import readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut
from jaxlocal.task import Task


def dgl(width: float = 1.0, tokens: int = 1) -> Rule:
    """DGL, all blocks updated in every step (the paper's synchronous form).

    Args:
      width: of the heads' hidden layers, relative to the paper's.
      tokens: that each position tells at a cut, as in :func:`jaxlocal.readout`.
    """

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        on_tokens = classifier(network.units, task, hidden=True, width=width)
        objective = readout(on_tokens if task.each else ConvMlp(task.num_classes, width), task.loss, tokens)
        return network, at_each_cut(network, task, lambda _: objective)

    return rule
