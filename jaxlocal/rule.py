"""A rule gives every block an objective and says how blocks are fed."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from jaxlocal.feed import Feed, chain
from jaxlocal.heads import Classifier
from jaxlocal.losses import Loss
from jaxlocal.network import Network, blocks_of
from jaxlocal.objective import LocalObjective, readout


class LocalRule(NamedTuple):
    """One objective per block; the last one is the network's own output."""

    objectives: tuple[LocalObjective, ...]
    feed: Feed = chain()


Rule = Callable[[Network, int], tuple[Network, LocalRule]]
"""``rule(network, num_classes)``: hyper-parameters were closed over, the network is given now.

A rule may move the cuts; the network it returns is the one to train.
"""


def head_at_each_cut(
    network: Network, num_classes: int, make_head: Callable[[int], nn.Module], loss: Loss
) -> LocalRule:
    """A readout at every cut, and the network's own classifier at the end.

    Args:
      network: units and cuts.
      num_classes: of the final classifier.
      make_head: ``last unit of the block -> head``.
      loss: of every readout.
    """
    blocks_of(network)  # raises on cuts that do not fit
    local = tuple(readout(make_head(cut - 1), loss) for cut in network.cuts)
    return LocalRule((*local, readout(Classifier(num_classes), loss)))
