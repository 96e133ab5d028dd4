r"""Adaptors around any rule: a trained network meets another domain, and keeps its weights.

A unit :math:`u`, frozen, is followed by an adaptor of its output,

.. math:: y = u(x) + A \tanh(B\, u(x) + b) + a,

two dense layers over the last axis (1x1 convolutions of an image). The outer one is zero at first: training starts from
what the network did before. A block's objective stays what it was, and trains the adaptors of its units alone.

References:
  Learning with Local Gradients at the Edge. arXiv 2208.08503, abstract: layer-wise adaptors for domain shift.
  Houlsby et al. Parameter-Efficient Transfer Learning for NLP. arXiv 1902.00751, figure 2: the adaptor.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Num

from jaxlocal.layers import Biased
from jaxlocal.network import Network
from jaxlocal.objective import no_sync
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task
from jaxlocal.variables import CACHE, FIXED, Variables, alike, is_caching

TRAINED = "trained"


class Adapted(nn.Module):
    """A unit that keeps its variables, running statistics too, and an adaptor that trains.

    Attributes:
      unit: the unit; its variables, whole, are ``fixed/trained``.
      adaptor: whether there is an adaptor; without it nothing here trains.
    """

    unit: nn.Module
    adaptor: bool = True

    @nn.compact
    def __call__(self, x: Num[Array, "b ..."], *, train: bool) -> Float[Array, "b ..."]:
        del train
        unit = self.unit.clone(parent=None)
        frozen = self.variable(FIXED, TRAINED, lambda: unit.init(self.make_rng("params"), x, train=False)).value
        y: Any
        if is_caching(self):
            cache: Any = self.variable(CACHE, TRAINED, dict)
            y, mutated = unit.apply({**frozen, CACHE: cache.value}, x, train=False, mutable=[CACHE])
            cache.value = mutated.get(CACHE, {})
        else:
            y = unit.apply(frozen, x, train=False)
        if not isinstance(y, jax.Array):
            raise ValueError(f"adapt: unit {type(unit).__name__} puts out no array, which an adaptor could follow")
        if not self.adaptor:
            return y
        layer = functools.partial(nn.Dense, y.shape[-1], use_bias=False, parent=None)
        hidden = nn.tanh(Biased(layer(), nn.initializers.zeros, name="inner")(y))
        return y + Biased(layer(kernel_init=nn.initializers.zeros), nn.initializers.zeros, name="outer")(hidden)


def adopted(new: Variables, trained: Variables) -> Variables:
    """A unit's variables, with the values of a trained one put where they belong: frozen in :class:`Adapted`.

    Args:
      new: of a unit, as it was initialised.
      trained: of the unit that was trained.

    Raises:
      ValueError: if they are of units that differ.
    """
    inside = FIXED in new and set(new[FIXED]) == {TRAINED} and not alike(new, trained)
    if not alike(new[FIXED][TRAINED] if inside else new, trained):
        raise ValueError("they differ in structure or shapes")
    return {**new, FIXED: {TRAINED: trained}} if inside else trained


def adapt(rule: Rule, adaptors: bool = True) -> Rule:
    """The objectives of ``rule`` train an adaptor of each unit, and the units stay as they are.

    Args:
      rule: whose objectives train the adaptors; its heads train as ever. Not one that follows other blocks, as
        MAN's averages do: what a next block's unit would show them is frozen.
      adaptors: whether there are any; without them heads alone train.

    Raises:
      ValueError: if the rule follows other blocks, or trains an embedding as the output's table.
    """

    def wrapped(network: Network, task: Task) -> tuple[Network, LocalRule]:
        cut, local = rule(network, task)
        if any(objective.sync is not no_sync for objective in local.objectives):
            raise ValueError(
                "adapt freezes the units: it cannot go around a rule that follows other blocks, as man does"
            )
        if getattr(cut.units[0], "tied", False) and not cut.cuts:
            raise ValueError("adapt freezes the embedding, which a tied output trains: choose tied=False in the model")
        return cut._replace(units=tuple(Adapted(unit, adaptors) for unit in cut.units)), local

    return wrapped
