"""The rules of supervised local learning, one file per paper."""

from jaxlocal.rules.auglocal import auglocal
from jaxlocal.rules.backprop import backprop
from jaxlocal.rules.deep_supervision import deep_supervision
from jaxlocal.rules.dgl import dgl
from jaxlocal.rules.greedy import greedy
from jaxlocal.rules.infopro import infopro
from jaxlocal.rules.man import man
from jaxlocal.rules.predsim import predsim
from jaxlocal.rules.remat import remat

__all__ = [
    "auglocal",
    "backprop",
    "deep_supervision",
    "dgl",
    "greedy",
    "infopro",
    "man",
    "predsim",
    "remat",
]
