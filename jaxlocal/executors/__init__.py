"""Executors run one step of all blocks; they differ in what is compiled together and where it lives."""

from jaxlocal.executors.accelerators import ACCELERATORS, Accelerator, accelerator, described, is_described
from jaxlocal.executors.compiler import compiler_options
from jaxlocal.executors.cost import MIB, Cost, cost_of
from jaxlocal.executors.data_parallel import ONE_DEVICE, DataParallel, OneDevice, Placement
from jaxlocal.executors.fused import fused
from jaxlocal.executors.pipelined import block_seconds, pipelined
from jaxlocal.executors.state import BlockMetrics, Executor, Program, TrainState
from jaxlocal.executors.streamed import streamed
