"""What devices tell each other in a compiled program, by its text."""

import math
import re
from collections.abc import Mapping

import jax.numpy as jnp

_KINDS = "all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute"
# `%name = (f32[3,4]{1,0}, s32[]) all-reduce-start(...)`: shapes of the result, the kind, whether it only begins here.
_CALL = re.compile(rf"= (?P<shapes>\(.*?\)|\S+) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+)\[([\d,]*)\]")
_NAMES = {"pred": "bool", "bf16": "bfloat16", "f": "float", "s": "int", "u": "uint", "c": "complex"}


def collectives(text: str) -> Mapping[str, int]:
    """Bytes of the results of a program's collectives, by kind, on one device; each as often as it is written."""
    found: dict[str, int] = {}
    for call in _CALL.finditer(text):
        sizes = [_size(*shape) for shape in _SHAPE.findall(call["shapes"])]
        begun = call["start"] and call["kind"] != "all-reduce"  # its operands stand beside its results
        found[call["kind"]] = found.get(call["kind"], 0) + (max(sizes, default=0) if begun else sum(sizes))
    return found


def _size(dtype: str, dimensions: str) -> int:
    name = _NAMES.get(dtype) or _NAMES[dtype[0]] + dtype[1:]
    return jnp.dtype(name).itemsize * math.prod(int(n) for n in dimensions.split(",") if n)
