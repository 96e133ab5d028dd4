"""The device that programs are compiled for, for those parts of a network that depend on it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

_UNSAID = "unsaid"
_TARGET = jax.make_user_context(_UNSAID)  # a part of what traces are kept by


def target() -> Any:
    """The ``jax.Device`` that what is traced now will run on: JAX's first, unless a placement says so; None for any."""
    return jax.devices()[0] if _TARGET.value == _UNSAID else _TARGET.value


@contextlib.contextmanager
def compiling_for(device: jax.Device | None) -> Iterator[None]:
    """What is traced in here is for this device; or, with None, for any: written out, without a device's kernels.

    Within ``compiling_for(None)`` no other device is taken.
    """
    with _TARGET(None if _TARGET.value is None else device):
        yield


def traced_for(device: jax.Device, f: Callable[..., Any]) -> Callable[..., Any]:
    """``f``, for this device when it is traced."""
    if device == jax.devices()[0]:  # what is unsaid
        return f

    @functools.wraps(f, updated=())
    def traced(*args: Any) -> Any:
        with compiling_for(device):
            return f(*args)

    return traced
