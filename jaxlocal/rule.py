"""A rule gives every block an objective and says how blocks are fed."""

from collections.abc import Callable
from typing import NamedTuple

from jaxlocal.feed import Feed, chain
from jaxlocal.heads import output_of
from jaxlocal.network import Network
from jaxlocal.objective import LocalObjective
from jaxlocal.readouts import readout
from jaxlocal.task import Task
from jaxlocal.unembedding import tied


class Remat(NamedTuple):
    """What blocks compute again in the backward pass instead of keeping it.

    Heads always keep the outputs of their convolutions and dense layers, and nothing else.

    Attributes:
      every: units in a span, whose input is kept.
      products: whether the outputs of convolutions and dense layers are kept within a span, so that
        only what is cheap, as batch norm and ReLU, is computed again.
    """

    every: int = 1
    products: bool = False


class LocalRule(NamedTuple):
    """One objective per block; the last one is the network's own output.

    Attributes:
      objectives: one per block.
      feed: makes each block's input.
      remat: what is computed again in the backward pass; None keeps all activations.
    """

    objectives: tuple[LocalObjective, ...]
    feed: Feed = chain()
    remat: Remat | None = None


Rule = Callable[[Network, Task], tuple[Network, LocalRule]]
"""``rule(network, task)``: hyper-parameters were closed over, network and task are given now.

A rule may move the cuts; the network it returns is the one to train.
"""


def output(network: Network, task: Task) -> LocalObjective:
    """The network's own output: a classifier behind the last unit, unless that answers itself.

    It is tied to the first unit where that has a field ``tied`` that is true, and no cut is between them.
    """
    objective = readout(output_of(network.units, task), task.loss)
    return tied(objective) if getattr(network.units[0], "tied", False) and not network.cuts else objective


def at_each_cut(network: Network, task: Task, objective: Callable[[int], LocalObjective]) -> LocalRule:
    """An objective at every cut, and the network's own output at the end.

    Args:
      network: units and cuts. They are checked where blocks are made of them.
      task: of the output.
      objective: ``index of the cut -> objective`` of the block that ends there.
    """
    local = tuple(objective(i) for i in range(len(network.cuts)))
    return LocalRule((*local, output(network, task)))
