"""How many floating-point operations a program takes, as it is written."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

# On a CPU convolutions may be loops, or calls into a library, whose operations nobody counts.
_PLATFORM = "tpu"


def operations(traced: Any) -> float:
    """What XLA counts of a program that was traced (``jax.jit(f).trace(...)``), with every turn of its loops.

    XLA itself counts the body of a loop once. Loops of unknown length still count once.
    """
    lowered = traced.lower(lowering_platforms=(_PLATFORM,))
    return (lowered.cost_analysis() or {}).get("flops", 0.0) + _further_turns(traced.jaxpr.jaxpr)


def _further_turns(jaxpr: Jaxpr) -> float:
    """Operations in all turns of loops but the first."""
    total = 0.0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "scan":
            body = params["jaxpr"]
            total += (params["length"] - 1) * operations(jax.jit(jaxpr_as_fun(body)).trace(*body.in_avals))
        if equation.primitive.name == "cond":
            total += max(_further_turns(branch.jaxpr) for branch in _branches(params))
        else:
            total += sum(map(_further_turns, _inside(params.values())))
    return total


def _branches(params: dict[str, Any]) -> Iterator[ClosedJaxpr]:
    """Those that may be taken: where the platform decides, one."""
    platforms = params.get("branches_platforms")
    if not platforms:
        yield from params["branches"]
    else:
        taken = (_PLATFORM in of if of is not None else True for of in platforms)
        yield params["branches"][list(taken).index(True)]


def _inside(params: Any) -> Iterator[Jaxpr]:
    """The programs among an operation's parameters."""
    for param in params:
        if isinstance(param, ClosedJaxpr):
            yield param.jaxpr
        elif isinstance(param, Jaxpr):
            yield param
        elif isinstance(param, list | tuple):
            yield from _inside(param)
