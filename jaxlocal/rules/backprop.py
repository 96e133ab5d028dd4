"""End-to-end backpropagation: the one block that every other rule is compared with."""

from jaxlocal.heads import output_of
from jaxlocal.losses import Loss, cross_entropy
from jaxlocal.network import Network
from jaxlocal.objective import readout
from jaxlocal.rule import LocalRule, Rule


def backprop(*, loss: Loss = cross_entropy) -> Rule:
    """One block, one objective, whatever the cuts were.

    Args:
      loss: of the network's output.
    """

    def rule(network: Network, num_classes: int) -> tuple[Network, LocalRule]:
        return network._replace(cuts=()), LocalRule((readout(output_of(network.units, num_classes), loss),))

    return rule
