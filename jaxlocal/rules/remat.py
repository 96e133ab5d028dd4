"""Rematerialisation around any rule: activations are computed again instead of kept.

References:
  Chen, Xu, Zhang, Guestrin. Training Deep Nets with Sublinear Memory Cost. arXiv 1604.06174.
"""

from jaxlocal.network import Network
from jaxlocal.rule import LocalRule, Remat, Rule
from jaxlocal.task import Task


def remat(rule: Rule, every: int = 1, products: bool = False) -> Rule:
    """The same updates as ``rule``, in less memory and with more computation.

    Args:
      rule: whose blocks keep only the input of each span of units, and whose heads keep only
        the outputs of their convolutions and dense layers.
      every: units in a span.
      products: whether units, too, keep the outputs of their convolutions and dense layers: more
        memory, next to no computation.

    Raises:
      ValueError: if ``every`` is not positive.
    """
    if every < 1:
        raise ValueError(f"remat: every {every} units given; choose 1 or more")

    def wrapped(network: Network, task: Task) -> tuple[Network, LocalRule]:
        cut, local = rule(network, task)
        return cut, local._replace(remat=Remat(every, products))

    return wrapped
