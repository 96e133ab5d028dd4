r"""PredSim: similarity matching and prediction, each by a head of one layer.

.. math:: L = \lambda\, \| S(\mathrm{conv}(h)) - S(\mathrm{onehot}(y)) \|^2 / b^2
              + \beta\, \mathrm{CE}(\mathrm{dense}(h), y)

(equations 1 to 3), where :math:`S` is the matrix of cosine similarities between the
examples of the batch, over the standard deviations of the channels.

References:
  Nokland, Eidnes. Training Neural Networks with Local Error Signals. ICML 2019.
  arXiv 1901.06656.
"""

from jaxtyping import Array, Float

from jaxlocal.heads import ConvStd, PooledClassifier
from jaxlocal.losses import similarity_matching
from jaxlocal.network import Network
from jaxlocal.objective import Batch, detached, weighted_sum
from jaxlocal.readouts import feature_objective, readout
from jaxlocal.rule import LocalRule, Rule, output
from jaxlocal.task import Task


def predsim(
    similarity: float = 0.99,
    prediction: float = 0.01,
    features: int = 512,
    width: float = 1.0,
    zero: bool = False,
    last: bool = False,
) -> Rule:
    """PredSim, or one of its two losses alone where the other's weight is zero.

    Args:
      similarity: weight of the similarity-matching loss; 0 leaves its head out ("pred").
      prediction: weight of the prediction loss; 0 leaves its head out ("sim").
      features: at most so many numbers reach the prediction head's dense layer.
      width: of the similarity head's layer, relative to the block's output.
      zero: whether the weights of the prediction heads start at zero, as in the authors' code.
      last: whether the last block minimises them too, and the network's classifier learns by itself, as in that code;
        else the classifier's loss is all that the last block minimises.

    Raises:
      ValueError: if both weights are zero, or one is negative.
    """
    if min(similarity, prediction) < 0 or similarity + prediction == 0:
        raise ValueError(f"predsim: weights {similarity} and {prediction} given; give one of them above 0, none below")

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        num_classes = task.once("predsim")

        def matching(features: Float[Array, "b d"], batch: Batch) -> Float[Array, "b"]:
            return similarity_matching(features, batch.label, num_classes)

        terms = {
            "similarity": (similarity, feature_objective(ConvStd(width), matching)),
            "prediction": (prediction, readout(PooledClassifier(num_classes, features, zero), task.loss)),
        }
        local = {name: term for name, term in terms.items() if term[0] > 0}
        end = output(network, task)
        end = weighted_sum(output=(1.0, detached(end)), **local) if last else end
        return network, LocalRule((weighted_sum(**local),) * len(network.cuts) + (end,))

    return rule
