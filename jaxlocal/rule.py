"""A rule gives every block an objective and says how blocks are fed."""

from collections.abc import Callable
from typing import NamedTuple

from jaxlocal.feed import Feed, chain
from jaxlocal.heads import Classifier
from jaxlocal.losses import Loss
from jaxlocal.network import Network
from jaxlocal.objective import LocalObjective, readout


class LocalRule(NamedTuple):
    """One objective per block; the last one is the network's own output.

    Attributes:
      objectives: one per block.
      feed: makes each block's input.
      remat: how many units at a time are computed again in the backward pass instead of
        keeping their activations; 0 keeps all.
    """

    objectives: tuple[LocalObjective, ...]
    feed: Feed = chain()
    remat: int = 0


Rule = Callable[[Network, int], tuple[Network, LocalRule]]
"""``rule(network, num_classes)``: hyper-parameters were closed over, the network is given now.

A rule may move the cuts; the network it returns is the one to train.
"""


def at_each_cut(
    network: Network, num_classes: int, objective: Callable[[int], LocalObjective], loss: Loss
) -> LocalRule:
    """An objective at every cut, and the network's own classifier at the end.

    Args:
      network: units and cuts. They are checked where blocks are made of them.
      num_classes: of the final classifier.
      objective: ``index of the cut -> objective`` of the block that ends there.
      loss: of the final classifier.
    """
    local = tuple(objective(i) for i in range(len(network.cuts)))
    return LocalRule((*local, readout(Classifier(num_classes), loss)))
