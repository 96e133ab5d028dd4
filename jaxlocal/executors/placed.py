"""A program, and the devices that it is compiled for."""

from collections.abc import Callable
from typing import Any

import jax

from jaxlocal.executors.compiler import uncached
from jaxlocal.target import compiling_for


class Placed:
    """A program of a placement.

    Args:
      program: runs, and is lowered.
      devices: that it is compiled for.
      inner: what it is within another program, which has compiler options of its own.
      part: the same computation on one device, of the same arguments or of their shapes, if the program itself
        cannot be counted.
    """

    def __init__(
        self,
        program: Any,
        devices: tuple[jax.Device, ...],
        inner: Callable[..., Any],
        part: Callable[..., Any] | None = None,
    ) -> None:
        self._program, self._inner, self._part = program, inner, part
        self.devices, self.lower = devices, program.lower

    def __call__(self, *args: Any) -> Any:
        if is_traced(args):
            return self._inner(*args)
        with uncached():
            return self._program(*args)

    def trace(self, *args: Any) -> Any:
        """Written out, to be counted."""
        if (part := self._part) is None:
            return self._program.trace(*args)
        with compiling_for(None):
            return jax.jit(lambda *args: part(*args)).trace(*args)


def is_traced(tree: Any) -> bool:
    """Whether a tree is one of shapes, which have no place."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
