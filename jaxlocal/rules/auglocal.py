r"""AugLocal: auxiliary networks made of the network's own later units.

A head of depth :math:`d_l` on unit :math:`l` of :math:`N` copies the units

.. math:: \mathrm{round}(l + j (N - 1 - l) / d_l), \quad j = 1 \dots d_l

(section 3.2, "uniform selection"), so that what a block learns suits the units
that follow it. Later blocks have shallower heads (section 3.3, "pyramidal
depth"):

.. math:: d_i = \max(1, \mathrm{round}(d (1 - \tau i / (M-2)) + \tau i / (M-2))), \quad i = 0 \dots M-2

The last :math:`d` cuts are dropped: of :math:`K` blocks, :math:`M = K - d` stay
isolated, and the last one ends in the network's own classifier.

References:
  Ma, Wu, Si, Tan. Scaling Supervised Local Learning with Augmented Auxiliary
  Networks. ICLR 2024. arXiv 2402.17318.
"""

import math

from jaxlocal.heads import Units, classifier
from jaxlocal.network import Network, strides_of, with_strides, with_width
from jaxlocal.objective import LocalObjective
from jaxlocal.readouts import readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut
from jaxlocal.task import Task


def select_units(last: int, num_units: int, depth: int) -> tuple[int, ...]:
    """Uniform selection: which units a head of ``depth`` on unit ``last`` copies."""
    later = num_units - last - 1
    if depth >= later:
        return tuple(range(last + 1, num_units))
    return tuple(round(last + later / depth * j) for j in range(1, depth + 1))


def depth_schedule(depth: int, num_blocks: int, tau: float) -> tuple[int, ...]:
    """Pyramidal depth: one head depth for each of the ``num_blocks - 1`` blocks that have a head.

    Halves round to even, and the terms are added in the order of the authors' code,
    so that ties fall the same way.
    """
    steps = max(1, num_blocks - 2)  # two blocks have one head, at the schedule's start
    slopes = [i * tau / steps for i in range(num_blocks - 1)]
    return tuple(max(1, round(depth * (1 - slope) + slope)) for slope in slopes)


def auxiliary_head(network: Network, last: int, depth: int, task: Task, width: float = 1.0) -> Units:
    """The head on unit ``last``: later units with fresh weights, pool, dense classifier; or a transformer's own end.

    A copy has ``width`` times the features of the unit it copies. It halves the resolution where the
    selection steps over units that do; if it steps over several, the copies after
    it that have strides catch up one by one. Heads of one unit have a batch norm before the classifier
    (authors' code).
    """
    copies, behind, previous = [], 0, last
    for selected in select_units(last, len(network.units), depth):
        skipped = network.units[previous + 1 : selected + 1]
        behind += sum(int(math.log2(strides_of(unit))) for unit in skipped)
        unit = network.units[selected]
        strides = 2 if behind and hasattr(unit, "strides") else 1
        copies.append(with_width(with_strides(unit, strides), width))
        behind, previous = behind - (strides == 2), selected
    if hasattr(network.units[-1], "norms"):
        return Units(tuple(copies), task.num_classes, output=classifier(network.units, task))
    return Units(tuple(copies), task.once("auglocal on units without a norm"), norm=depth <= 1)


def auglocal(depth: int = 2, tau: float = 0.5, width: float = 1.0) -> Rule:
    r"""AugLocal on any network of units.

    Args:
      depth: :math:`d`, units in the first block's head; the paper's ResNet-32 uses 2 to 9.
      tau: :math:`\tau` in [0, 1], how much shallower the last head is; 0 keeps all at ``depth``.
      width: of the heads, relative to the units they copy.

    Raises:
      ValueError: if depth or tau are out of range, or (when the rule meets a network)
        if fewer than two blocks would be left.
    """
    if depth < 1 or not 0 <= tau <= 1:
        raise ValueError(f"auglocal: depth {depth} and tau {tau} given; depth is 1 or more, tau between 0 and 1")

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        num_blocks = len(network.cuts) + 1 - depth
        if num_blocks < 2:
            raise ValueError(
                f"auglocal: depth {depth} merges the last {depth + 1} of {len(network.cuts) + 1} blocks and leaves "
                f"{max(1, num_blocks)}: give at least {depth + 2} blocks, or a smaller depth"
            )
        kept = network._replace(cuts=network.cuts[: num_blocks - 1])
        depths = depth_schedule(depth, num_blocks, tau)

        def objective(i: int) -> LocalObjective:
            return readout(auxiliary_head(network, kept.cuts[i] - 1, depths[i], task, width), task.loss)

        return kept, at_each_cut(kept, task, objective)

    return rule
