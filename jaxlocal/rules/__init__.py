"""The rules of supervised local learning, one file per paper."""

from jaxlocal.rules.adapt import adapt
from jaxlocal.rules.auglocal import auglocal
from jaxlocal.rules.backprop import backprop
from jaxlocal.rules.deep_supervision import deep_supervision
from jaxlocal.rules.dfa import dfa
from jaxlocal.rules.dgl import dgl
from jaxlocal.rules.drtp import drtp
from jaxlocal.rules.forward_forward import forward_forward
from jaxlocal.rules.greedy import greedy
from jaxlocal.rules.infopro import infopro
from jaxlocal.rules.lopt import lopt
from jaxlocal.rules.man import man
from jaxlocal.rules.mono_forward import mono_forward
from jaxlocal.rules.noprop import noprop_dt
from jaxlocal.rules.noprop_continuous import noprop_ct, noprop_fm
from jaxlocal.rules.predsim import predsim
from jaxlocal.rules.remat import remat
from jaxlocal.rules.shared import shared
from jaxlocal.rules.tpsgd import tpsgd

__all__ = [
    "adapt",
    "auglocal",
    "backprop",
    "deep_supervision",
    "dfa",
    "dgl",
    "drtp",
    "forward_forward",
    "greedy",
    "infopro",
    "lopt",
    "man",
    "mono_forward",
    "noprop_ct",
    "noprop_dt",
    "noprop_fm",
    "predsim",
    "remat",
    "shared",
    "tpsgd",
]
