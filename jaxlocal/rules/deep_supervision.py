"""Deep supervision: the heads of another rule, with the gradients not cut.

One block holds the whole network and minimises the sum of all losses, so each head's
gradient reaches every unit before it. It tells what the isolation costs, as the heads
are the same.

References:
  Lee, Xie, Gallagher, Zhang, Tu. Deeply-Supervised Nets. AISTATS 2015, section 2.
"""

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array

from jaxlocal.feed import chain
from jaxlocal.network import Network
from jaxlocal.objective import no_sync, through, weighted_sum
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task


class Exits(NamedTuple):
    """What flows through the one block: a unit's output, and the outputs where the cuts were."""

    x: Array
    taken: tuple[Array, ...]


class Tap(nn.Module):
    """A unit that hands on the exits taken so far.

    Attributes:
      unit: that computes.
      exit: whether the unit's input becomes one more exit.
    """

    unit: nn.Module
    exit: bool

    @nn.compact
    def __call__(self, carry: Any, *, train: bool) -> Exits:
        x, taken = carry if isinstance(carry, Exits) else (carry, ())
        return Exits(self.unit(x, train=train), (*taken, x) if self.exit else taken)


class Exit(nn.Module):
    """What a head reads: exit ``index``, or the network's output.

    Attributes:
      index: of the exit; None for the network's output.
    """

    index: int | None

    @nn.compact
    def __call__(self, carry: Exits, *, train: bool) -> Array:
        del train
        return carry.x if self.index is None else carry.taken[self.index]


def deep_supervision(rule: Rule, weight: float = 1.0) -> Rule:
    """One block with the heads of ``rule`` where its cuts were.

    Args:
      rule: whose objectives are summed; not one that follows other blocks, as MAN does, or that
        feeds them in a way of its own, as LoPT does.
      weight: of every loss but the last.

    Raises:
      ValueError: if the weight is negative, or the rule follows other blocks or feeds them in a way of its own.
    """
    if weight < 0:
        raise ValueError(f"deep_supervision: weight {weight} given; choose 0 or more")

    def wrapped(network: Network, task: Task) -> tuple[Network, LocalRule]:
        cut, local = rule(network, task)
        *hidden, output = local.objectives
        if any(objective.sync is not no_sync for objective in hidden):
            raise ValueError("deep_supervision is one block: it cannot go around a rule that follows other blocks")
        if local.feed is not chain():
            raise ValueError("deep_supervision is one block: it cannot go around a rule that feeds blocks its own way")
        terms = {"output": (1.0, through(Exit(None), output))}
        terms |= {f"exit_{i + 1}": (weight, through(Exit(i), objective)) for i, objective in enumerate(hidden)}
        units = tuple(Tap(unit, i in cut.cuts) for i, unit in enumerate(cut.units))
        return Network(units), local._replace(objectives=(weighted_sum(**terms),))

    return wrapped
