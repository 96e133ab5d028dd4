r"""DRTP: the gradient of a hidden layer is a random projection of the label.

.. math:: \delta y_k = \mathrm{onehot}(y)\, B_k

in place of the loss's gradient, with :math:`B_k` fixed; the layer's own derivative applies (algorithm 1). So the layer
minimises the inner product of its output with that projection, which is the special case of
:func:`jaxlocal.rules.tpsgd` whose loss is linear. The output layer learns by the true loss.

References:
  Frenkel, Lefebvre, Bol. Learning Without Feedback: Fixed Random Learning Signals Allow for Feedforward
  Training of Deep Neural Networks. Frontiers in Neuroscience 2021. arXiv 1909.01311.
"""

from jaxlocal.rule import Rule
from jaxlocal.rules.tpsgd import tpsgd


def drtp() -> Rule:
    """DRTP, its projections drawn as in the authors' code (Kaiming's uniform distribution)."""
    return tpsgd("inner_product", bound=None)
