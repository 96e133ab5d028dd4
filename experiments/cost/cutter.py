"""Which cuts to give to a rule, so that balanced blocks are left."""

from collections.abc import Sequence
from itertools import pairwise

import flax.linen as nn

from jaxlocal.network import Network, cheapest_cuts, cut_everywhere
from jaxlocal.rule import Rule, output
from jaxlocal.task import Task


class Cutter:
    """The cuts to give to a rule, so that so many balanced blocks are left.

    Of cuts everywhere a rule keeps the first so many and drops the tail: none (DGL), the last few
    (AugLocal), or all (backprop). The tail is given after the cuts that are wanted.

    A block is reckoned to take what its dearest unit does, and a share of what the others do: what a unit
    alone takes is more than it adds to a block. The share follows from what was measured last.
    """

    def __init__(self, units: Sequence[nn.Module], rule: Rule, task: Task) -> None:
        """Tries the rule.

        Raises:
          ValueError: if the units are too few for it, or it moves the cuts.
        """
        self.units = tuple(units)
        self._rule, self._task = rule, task
        everywhere = cut_everywhere(self.units)
        kept, local_rule = rule(Network(self.units, everywhere), task)
        self.most = len(kept.cuts) + 1
        if kept.cuts != everywhere[: self.most - 1]:
            raise ValueError("it moves the cuts: no plan can be made, give the cuts yourself")
        self.tail = everywhere[self.most - 1 :]
        self.fewest = next((k for k in range(1, self.most) if self._keeps(everywhere[: k - 1])), self.most)
        self.remat = local_rule.remat
        self.heads = (
            *local_rule.objectives[:-1],
            *[output(Network(self.units, everywhere), task)] * (len(self.tail) + 1),
        )
        self._costs: Sequence[float] = [1.0] * len(self.units)
        self._share = 1.0

    def cut(self, costs: Sequence[float], num_blocks: int) -> tuple[int, ...]:
        """The cuts to give for ``num_blocks`` blocks, the dearest as cheap as possible.

        Raises:
          ValueError: if the rule does not keep those of them that it should.
        """
        self._costs = costs
        ends = (*range(1, self.most), len(costs))  # the tail goes with the last block
        wanted = cheapest_cuts(ends, self._cost, num_blocks)
        if not self._keeps(wanted):
            raise ValueError(f"no cuts were found of which the rule keeps {wanted}: give the cuts yourself")
        return (*wanted, *self.tail)

    def correct(self, cuts: Sequence[int], measured: float) -> None:
        """Learns what the dearest block between these cuts takes."""
        blocks = [self._costs[a:b] for a, b in pairwise((0, *cuts, len(self._costs)))]
        shares = [(measured - max(block)) / (sum(block) - max(block)) for block in blocks if sum(block) > max(block)]
        self._share = min(1.0, max(0.0, min(shares, default=1.0)))

    def _cost(self, first: int, end: int) -> float:
        dearest, together = max(self._costs[first:end]), sum(self._costs[first:end])
        return dearest + self._share * (together - dearest)

    def _keeps(self, wanted: tuple[int, ...]) -> bool:
        try:
            kept, _ = self._rule(Network(self.units, (*wanted, *self.tail)), self._task)
        except ValueError:
            return False
        return kept.cuts == wanted
