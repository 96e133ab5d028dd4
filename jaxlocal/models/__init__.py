"""Networks, as functions that return tuples of units."""

from jaxlocal.models.convnet import ConvUnit, convnet
from jaxlocal.models.gpt import Embedding, Layer, gpt
from jaxlocal.models.imagenet_resnet import Bottleneck, PooledStem, imagenet_resnet, resnext
from jaxlocal.models.lenet import PoolUnit, lenet
from jaxlocal.models.mlp import DenseUnit, mlp
from jaxlocal.models.noprop import Denoiser, LabelUnit, noprop
from jaxlocal.models.resnet import BasicBlock, Stem, resnet
from jaxlocal.models.rnn import RecurrentUnit, rnn
from jaxlocal.models.vgg import PooledConvUnit, vgg
from jaxlocal.models.vit import Patches, vit

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ConvUnit",
    "Denoiser",
    "DenseUnit",
    "Embedding",
    "LabelUnit",
    "Layer",
    "Patches",
    "PoolUnit",
    "PooledConvUnit",
    "PooledStem",
    "RecurrentUnit",
    "Stem",
    "convnet",
    "gpt",
    "imagenet_resnet",
    "lenet",
    "mlp",
    "noprop",
    "resnet",
    "resnext",
    "rnn",
    "vgg",
    "vit",
]
