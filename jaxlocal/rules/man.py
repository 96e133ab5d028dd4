r"""MAN: momentum auxiliary networks, in front of the heads of any other rule.

A block sees a moving average of what comes next:

.. math:: y = \mathrm{LB}(x) + \mathrm{EMA}(x), \qquad
          \theta_{\mathrm{EMA}} \leftarrow m\, \theta_{\mathrm{EMA}} + (1 - m)\, \theta_{\mathrm{next}}

where LB, the learnable bias, and EMA are both copies of the next block's first unit
(section 3.3, equations 6 to 8). The other rule's head reads :math:`y`, so it sits one
unit further on. The average takes no gradient, but lets the gradient through to the block.

References:
  Su et al. Momentum Auxiliary Network for Supervised Local Learning. ECCV 2024. arXiv 2407.05623; MAN++, 2507.16279.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlocal.layers import in_float32, spread
from jaxlocal.network import Network
from jaxlocal.objective import Sync, no_sync, same_for_equal_arguments, through
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task
from jaxlocal.variables import CACHE, EMA, FIXED, RUNNING, Variables, is_caching


class MomentumAuxiliary(nn.Module):
    """The learnable bias and the moving average of ``unit``, added up; the options are those of :func:`man`."""

    unit: nn.Module
    bias: bool = True
    ema: bool = True
    scale: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b ..."]:
        # Float32, as its gradient is a difference of sums that are much alike.
        s = in_float32(self.param("scale", nn.initializers.ones, ())) if self.scale else None
        terms = [self.unit(x, train=train)] if self.bias else []
        terms += [self._average(x, train=train)] if self.ema else []
        weighted = terms if s is None else [spread(w, y) * y for w, y in zip((s, 2 - s), terms, strict=True)]
        return sum(weighted[1:], start=weighted[0])

    def _average(self, x: Array, *, train: bool) -> Array:
        """The unit on averaged parameters; its batch norm keeps running statistics of its own."""
        unit = self.unit.clone(parent=None)
        fresh = unit.init(self.make_rng("params"), x, train=False) if self.is_initializing() else {}
        changing = [RUNNING, CACHE] if is_caching(self) else [RUNNING]
        of = {"params": self.variable(EMA, "average", lambda: fresh["params"])}
        of |= {name: self.variable(name, "average", lambda: fresh.get(RUNNING, {})) for name in changing}
        if FIXED in fresh or self.has_variable(FIXED, "average"):
            of[FIXED] = self.variable(FIXED, "average", lambda: fresh[FIXED])
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        y, mutated = unit.apply({c: v.value for c, v in of.items()}, x, train=train, rngs=rngs, mutable=changing)
        for name in changing:
            if self.is_mutable_collection(name) and not self.is_initializing():
                of[name].value = mutated.get(name, {})
        return y


@same_for_equal_arguments
def follow(decay: float, start_from_peer: bool) -> Sync:
    """Averages the parameters of the next block's first unit, by :func:`optax.ema`."""
    average = optax.ema(decay, debias=False)

    def sync(variables: Variables, peer: Any, *, start: bool) -> Variables:
        if start and not start_from_peer:
            return variables
        if start:
            new = jax.tree.map(jnp.copy, peer["unit_0"])  # a step donates the parameters themselves
        else:
            old = optax.EmaState(jnp.zeros((), jnp.int32), variables[EMA]["average"])
            new = average.update(peer["unit_0"], old)[1].ema
        return {**variables, EMA: {"average": new}}

    return sync


def man(
    rule: Rule, decay: float = 0.995, bias: bool = True, ema: bool = True, start: str = "next", scale: bool = False
) -> Rule:
    """MAN around another rule: the auxiliary in front of each of its heads.

    Args:
      rule: whose objectives read the auxiliary feature; not MAN itself, nor deep supervision.
      decay: :math:`m`, in [0, 1].
      bias: whether there is a learnable bias; without it only the average is left.
      ema: whether there is a moving average; without it only the bias is left.
      start: of the average, at the ``next`` unit's parameters (paper) or at an ``independent`` draw (authors' code).
      scale: MAN++'s learnable scale.

    Raises:
      ValueError: if an option is none of these, bias and average are both left out, or man cannot go around the rule.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"man: decay {decay} given; choose 0 to 1")
    if start not in ("next", "independent"):
        raise ValueError(f"man: start {start!r} given; choose 'next' or 'independent'")
    if not (bias or ema) or (scale and not (bias and ema)):
        raise ValueError(f"man: bias={bias}, ema={ema}, scale={scale}: keep one of the first two, both under a scale")

    def wrapped(network: Network, task: Task) -> tuple[Network, LocalRule]:
        one_on = network._replace(cuts=tuple(cut + 1 for cut in network.cuts))
        seen, local = rule(one_on, task)
        cuts, objectives = tuple(cut - 1 for cut in seen.cuts), list(local.objectives)
        nested = any(cut >= len(network.units) for cut in cuts) or any(o.sync is not no_sync for o in objectives)
        if nested or seen.units != network.units:
            raise ValueError("man goes around a rule that neither changes the units nor follows other blocks itself")
        for i, cut in enumerate(cuts):
            adapter = MomentumAuxiliary(network.units[cut], bias, ema, scale)
            sync = follow(decay, start == "next") if ema else no_sync
            objectives[i] = through(adapter, objectives[i], sync)
        return network._replace(cuts=cuts), local._replace(objectives=tuple(objectives))

    return wrapped
