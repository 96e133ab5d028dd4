"""End-to-end backpropagation: the one block that every other rule is compared with."""

from jaxlocal.network import Network
from jaxlocal.rule import LocalRule, Rule, output
from jaxlocal.task import Task


def backprop() -> Rule:
    """One block, one objective, whatever the cuts were."""

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        whole = network._replace(cuts=())
        return whole, LocalRule((output(whole, task),))

    return rule
