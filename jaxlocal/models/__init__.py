"""Networks, as functions that return tuples of units."""

from jaxlocal.models.convnet import ConvUnit, convnet
from jaxlocal.models.imagenet_resnet import Bottleneck, PooledStem, imagenet_resnet, resnext
from jaxlocal.models.mlp import DenseUnit, mlp
from jaxlocal.models.resnet import BasicBlock, Stem, resnet
from jaxlocal.models.vgg import PooledConvUnit, vgg

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ConvUnit",
    "DenseUnit",
    "PooledConvUnit",
    "PooledStem",
    "Stem",
    "convnet",
    "imagenet_resnet",
    "mlp",
    "resnet",
    "resnext",
    "vgg",
]
