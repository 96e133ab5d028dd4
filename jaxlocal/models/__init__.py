"""Networks, as functions that return tuples of units."""

from jaxlocal.models.convnet import ConvUnit, convnet
from jaxlocal.models.mlp import DenseUnit, mlp
from jaxlocal.models.resnet import BasicBlock, Stem, resnet

__all__ = ["BasicBlock", "ConvUnit", "DenseUnit", "Stem", "convnet", "mlp", "resnet"]
