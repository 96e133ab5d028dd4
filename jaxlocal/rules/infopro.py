r"""InfoPro: each block keeps the information about the image, and that about the label.

.. math:: L_i = \lambda_i\, \mathrm{BCE}(\mathrm{decoder}(h), x) + \mu_i\, L_{\mathrm{label}}(\mathrm{head}(h), y)

(section 3.3, equation 6), where the label's loss is softmax cross-entropy or the supervised
contrastive loss, and the weights change linearly from the first head to the last.

References:
  Wang, Ni, Song, Yang, Huang. Revisiting Locally Supervised Learning: an Alternative
  to End-to-end Training. ICLR 2021. arXiv 2101.10832.
"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from jaxlocal import losses
from jaxlocal.heads import ConvDense, Decoder
from jaxlocal.network import Network, strides_of
from jaxlocal.objective import Batch, LocalObjective, weighted_sum
from jaxlocal.readouts import feature_objective, readout
from jaxlocal.rule import LocalRule, Rule, at_each_cut
from jaxlocal.task import Task


def weights(given: Sequence[float], heads: int) -> tuple[float, ...]:
    """One weight per head: ``given`` itself, or linear between the two that are given.

    Raises:
      ValueError: if neither two nor ``heads`` weights are given.
    """
    if len(given) == heads:
        return tuple(given)
    if len(given) != 2:
        raise ValueError(f"infopro: weights {tuple(given)} given; give (first, last), or one for each of {heads} heads")
    first, last = given
    ratios = [i / max(1, heads - 1) for i in range(heads)]
    return tuple(first * (1 - ratio) + last * ratio for ratio in ratios)


def infopro(
    reconstruction: Sequence[float] = (5.0, 0.2),
    label: Sequence[float] = (0.05, 0.5),
    contrast: bool = False,
    hidden: int = 128,
    width: float = 1.0,
) -> Rule:
    r"""InfoPro. Batches must hold ``pixels``, which the decoders reconstruct.

    Args:
      reconstruction: :math:`\lambda` of the first and the last head, or of every head.
      label: :math:`\mu` of the first and the last head, or of every head.
      contrast: whether the label's loss is the supervised contrastive one (temperature
        0.07, over ``hidden`` features), rather than the task's.
      hidden: features of the heads' dense layer.
      width: of the hidden layers of decoders and heads, relative to the paper's.

    Raises:
      ValueError: if the weights are neither two nor one per head, or batches hold no pixels.
    """

    def pixels(batch: Batch) -> Float[Array, "b h w c"]:
        if batch.pixels is None:
            raise ValueError("infopro reconstructs the image: give batches with pixels in [0, 1]")
        return batch.pixels

    def decoder(batch: Batch) -> nn.Module:
        _, h, w, c = pixels(batch).shape
        return Decoder((h, w, c), width)

    def reconstructed(logits: Float[Array, "b h w c"], batch: Batch) -> Float[Array, "b"]:
        return losses.reconstruction(logits, pixels(batch).astype(logits.dtype))

    def contrasted(features: Float[Array, "b d"], batch: Batch) -> Float[Array, "b"]:
        return losses.supervised_contrastive(features, batch.label)

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        num_classes, heads = task.once("infopro"), len(network.cuts)
        decoding, labelling = weights(reconstruction, heads), weights(label, heads)

        def objective(i: int) -> LocalObjective:
            stage_ahead = any(strides_of(unit) > 1 for unit in network.units[network.cuts[i] :])
            strides = 2 if stage_ahead else 1
            if contrast:
                labels = feature_objective(ConvDense(hidden, strides, hidden, width), contrasted)
            else:
                labels = readout(ConvDense(num_classes, strides, hidden, width), task.loss)
            return weighted_sum(
                reconstruction=(decoding[i], feature_objective(decoder, reconstructed)), label=(labelling[i], labels)
            )

        return network, at_each_cut(network, task, objective)

    return rule
