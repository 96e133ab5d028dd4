"""Executors run one step of all blocks; they differ in what is compiled together and where it lives."""

from jaxlocal.executors.compiler import compiler_options
from jaxlocal.executors.data_parallel import ONE_DEVICE, DataParallel, Placement
from jaxlocal.executors.fused import fused
from jaxlocal.executors.state import BlockMetrics, Executor, Program, TrainState
from jaxlocal.executors.streamed import streamed

__all__ = [
    "ONE_DEVICE",
    "BlockMetrics",
    "DataParallel",
    "Executor",
    "Placement",
    "Program",
    "TrainState",
    "compiler_options",
    "fused",
    "streamed",
]
