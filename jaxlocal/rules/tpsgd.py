r"""tpSGD: every layer learns a random projection of the label, by forward passes alone.

Layer :math:`i` with output :math:`y_i = \sigma(z_i)` minimises a distance to its own fixed target,

.. math:: J_i = \ell(y_i, P_i\, y), \qquad
          \frac{\partial J_i}{\partial z_i} = (y_i - P_i\, y) \odot \sigma'(z_i) \;\text{ for }\;
          \ell = \tfrac12 \| y_i - P_i\, y \|^2,

with the difference's sign where :math:`\ell` is the absolute distance. Nothing is kept of a layer once it is
updated. The network's output is trained by its own loss, which does not reach the last layer either.

References:
  Learning with Local Gradients at the Edge. arXiv 2208.08503, section 3.
"""

from jaxlocal import losses
from jaxlocal.losses import TargetLoss
from jaxlocal.network import Network
from jaxlocal.objective import detached, weighted_sum
from jaxlocal.readouts import projected_label
from jaxlocal.rule import LocalRule, Rule, output
from jaxlocal.task import Task

DISTANCES: dict[str, TargetLoss] = {
    "squared": losses.squared_distance,
    "absolute": losses.absolute_distance,
    "logistic": losses.logistic,
    "inner_product": losses.inner_product,
}


def tpsgd(distance: str = "squared", bound: float | None = 3.0) -> Rule:
    """Target projection on any network of units, each cut a layer with a target of its own.

    Args:
      distance: a key of :data:`DISTANCES`, the loss between a layer's output and its target.
      bound: of the projections' entries, which are uniform around zero; None for Kaiming's.

    Raises:
      ValueError: if the distance is not known, or the bound not positive.
    """
    if distance not in DISTANCES:
        raise ValueError(f"tpsgd: distance {distance!r} given; choose one of {', '.join(DISTANCES)}")
    if bound is not None and bound <= 0:
        raise ValueError(f"tpsgd: bound {bound} given; choose a positive one, or None")

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        target = projected_label(task.once("tpsgd"), DISTANCES[distance], bound)
        last = weighted_sum(output=(1.0, detached(output(network, task))), target=(1.0, target))
        return network, LocalRule((target,) * len(network.cuts) + (last,))

    return rule
