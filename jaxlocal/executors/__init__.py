"""Executors run one step of all blocks; they differ in what is compiled together and where it lives."""

from jaxlocal.executors.compiler import compiler_options
from jaxlocal.executors.fused import fused
from jaxlocal.executors.state import BlockMetrics, Executor, Program, TrainState
from jaxlocal.executors.streamed import streamed

__all__ = ["BlockMetrics", "Executor", "Program", "TrainState", "compiler_options", "fused", "streamed"]
