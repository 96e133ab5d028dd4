"""Executors run one step of all blocks; they differ in what is compiled together and where it lives."""

from jaxlocal.executors.compiler import compiler_options
from jaxlocal.executors.fused import fused
from jaxlocal.executors.state import BlockMetrics, Executor, TrainState, init_state

__all__ = ["BlockMetrics", "Executor", "TrainState", "compiler_options", "fused", "init_state"]
