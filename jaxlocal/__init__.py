"""jaxlocal: supervised local learning in JAX.

Networks are cut into gradient-isolated blocks; each block learns from its own
auxiliary head, and no gradient crosses a cut.
"""

from jaxlocal import data, diagnostics, executors, heads, losses, models, rules
from jaxlocal.block import Block, BlockState, make_blocks
from jaxlocal.executors import DataParallel, Executor, TrainState, compiler_options, fused, streamed
from jaxlocal.feed import Feed, chain
from jaxlocal.network import Network, cut_balanced, cut_evenly, cut_everywhere
from jaxlocal.objective import Batch, LocalObjective, ObjectiveOut, freeze, through, weighted_sum
from jaxlocal.readouts import feature_objective, readout
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task

__version__ = "0.2.0"
