"""The device that programs are compiled for, for those parts of a network that depend on it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

_TARGET: ContextVar[jax.Device | None] = ContextVar("target")


def target() -> Any:
    """The ``jax.Device`` that what is traced now will run on: JAX's first, unless a placement says so; None for any."""
    return _TARGET.get() if _TARGET.get(_UNSAID) is not _UNSAID else jax.devices()[0]


_UNSAID: Any = object()


@contextlib.contextmanager
def compiling_for(device: jax.Device | None) -> Iterator[None]:
    """What is traced in here is for this device; or, with None, for any: written out, without a device's kernels.

    Within ``compiling_for(None)`` no other device is taken.
    """
    said = _TARGET.set(device if _TARGET.get(device) is not None else None)
    try:
        yield
    finally:
        _TARGET.reset(said)


def traced_for(device: jax.Device, f: Callable[..., Any]) -> Callable[..., Any]:
    """``f``, for this device when it is traced."""

    @functools.wraps(f, updated=())
    def traced(*args: Any) -> Any:
        with compiling_for(device):
            return f(*args)

    return traced
