r"""LoPT: only the last block learns the task; each other one keeps what it was given readable.

.. math:: L_k = \frac{\lambda}{K - 1}\, \| D_k(h_k) - \mathrm{stop}(h_{k-1}) \|^2 / n, \qquad
          D(h) = W_2\, \mathrm{GELU}(W_1\, \mathrm{norm}(h) + b_1) + b_2

for blocks :math:`k < K`, over the :math:`n` numbers of a block's input :math:`h_{k-1}`; :math:`h_0` is what unit 0
puts out, the embedding. No label reaches them. :math:`D` sees one position, through a quarter of the features.

References:
  Shi, Han, Wang, Wang, Yang, Su. Rethinking Local Learning: A Cheaper and Faster Recipe for LLM Post-Training.
  arXiv 2605.04913, and its code.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlocal.feed import chain
from jaxlocal.layers import Biased, in_float32, normed, scaled
from jaxlocal.network import Network
from jaxlocal.objective import Batch, Carry, weighted_sum
from jaxlocal.readouts import feature_objective
from jaxlocal.rule import LocalRule, Rule, at_each_cut
from jaxlocal.task import Task
from jaxlocal.variables import Key


class Kept(NamedTuple):
    """What flows through a block that reconstructs: a unit's output, and what the block was given."""

    x: Array
    given: Array


class Keeping(nn.Module):
    """A unit that hands on what its block was given; its variables are the unit's own.

    Attributes:
      unit: that computes.
      embeds: whether its output is what counts as given, as that of the network's first unit.
    """

    unit: nn.Module
    embeds: bool = False

    def setup(self) -> None:
        """A network trained by another rule has the same variables."""
        nn.share_scope(self, self.unit)

    def __call__(self, carry: Any, *, train: bool) -> Kept:
        x, given = carry if isinstance(carry, Kept) else (carry, carry)
        x = self.unit(x, train=train)
        return Kept(x, jax.lax.stop_gradient(x if self.embeds else given))


class Reconstruction(nn.Module):
    """What a decoder of the block's output misses of the block's input, ``[b, ..., f]``, in float32."""

    @nn.compact
    def __call__(self, carry: Kept, *, train: bool) -> Float[Array, "b ... f"]:
        del train
        x, given = carry
        if x.shape[:-1] != given.shape[:-1]:
            shapes = " into ".join("x".join(map(str, y.shape[1:])) for y in (given, x))
            raise ValueError(f"lopt: a block makes {shapes}: cut the network where blocks keep the positions")
        xavier = nn.initializers.variance_scaling(0.01, "fan_avg", "uniform")  # gain 0.1
        layer = functools.partial(nn.Dense, use_bias=False, kernel_init=xavier, parent=None)
        inner, outer = layer(scaled(x.shape[-1], 0.25)), layer(given.shape[-1])
        x = Biased(inner, nn.initializers.zeros, name="inner")(normed(x, "layer", bias=True, name="norm"))
        x = Biased(outer, nn.initializers.zeros, name="outer")(nn.gelu(x, approximate=False))
        return in_float32(x) - in_float32(given)


def _squared(missed: Float[Array, "b ... f"], batch: Batch) -> Float[Array, "b"]:
    del batch
    return jnp.mean(missed**2, axis=tuple(range(1, missed.ndim)))


def lopt(weight: float = 10.0) -> Rule:
    r"""LoPT on any network of units whose blocks keep positions, as transformers do.

    The first block's input is what unit 0 puts out: so that there is something to reconstruct, a cut behind unit 0 is
    left out.

    Args:
      weight: :math:`\lambda`, of the mean over the blocks' losses.

    Raises:
      ValueError: if the weight is not positive, no cut is left, or a block changes the positions.
    """
    if weight <= 0:
        raise ValueError(f"lopt: weight {weight} given; choose one above 0")

    def feed(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
        return chain()(index, previous.x if index else previous, batch, key, train=train)

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        cuts = tuple(cut for cut in network.cuts if cut != 1)
        if not cuts:
            raise ValueError(f"lopt: cuts {network.cuts} give one block, as none is made of unit 0 alone: cut later")
        first, last = network.units[: cuts[-1]], network.units[cuts[-1] :]
        kept = Network((*(Keeping(unit, not i) for i, unit in enumerate(first)), *last), cuts)
        lost = weighted_sum(reconstruction=(weight / len(cuts), feature_objective(Reconstruction(), _squared)))
        return kept, at_each_cut(kept, task, lambda _: lost)._replace(feed=feed)

    return rule
