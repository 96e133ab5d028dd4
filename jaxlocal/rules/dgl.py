"""Decoupled greedy learning: a small convolutional and dense head at every cut.

References:
  Belilovsky, Eickenberg, Oyallon. Decoupled Greedy Learning of CNNs. ICML 2020,
  section 4.1 and appendix (the head called MLP-SR-aux).
"""

from jaxlocal.heads import ConvMlp, classifier
from jaxlocal.network import Network
from jaxlocal.readouts import readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut
from jaxlocal.task import Task


def dgl(width: float = 1.0, tokens: int = 1, most: int | None = None) -> Rule:
    """DGL, all blocks updated in every step (the paper's synchronous form).

    Args:
      width: of the heads' hidden layers, relative to the paper's.
      tokens: that each position tells at a cut, as in :func:`jaxlocal.readout`.
      most: features of a hidden layer of a head at most, for networks of wide units: the dense layers have four times
        the features of the unit, and the parameters go by the square of that. None for the paper's.

    Raises:
      ValueError: if ``most`` is not positive, or the network is of tokens, whose heads have no such layers.
    """
    if most is not None and most < 1:
        raise ValueError(f"most is the number of features that a head's hidden layer has at most, not {most}")

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        if most is not None and task.each:
            raise ValueError("most is for heads of images: those of tokens have the width of the network")
        on_tokens = classifier(network.units, task, hidden=True, width=width)
        objective = readout(on_tokens if task.each else ConvMlp(task.num_classes, width, most), task.loss, tokens)
        return network, at_each_cut(network, task, lambda _: objective)

    return rule
