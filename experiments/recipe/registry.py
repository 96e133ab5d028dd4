"""Rules, models and optimizers by name, and how a config's ``{name: ..., **parameters}`` becomes one."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError, one_line, one_of, user_input
from experiments.app.program import CONFIGS
from experiments.app.usage import headline
from jaxlocal import data, models, optimizers, rules
from jaxlocal.executors import fused, pipelined, streamed
from jaxlocal.rule import Rule

RULES: dict[str, Callable[..., Any]] = {name: getattr(rules, name) for name in rules.__all__}
MODELS: dict[str, Callable[..., Any]] = {name: f for name, f in vars(models).items() if inspect.isfunction(f)}
OPTIMIZERS: Mapping[str, Callable[..., Any]] = {"sgd": optimizers.sgd, "adamw": optimizers.adamw}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
EXECUTORS: dict[str, Any] = {
    "fused": fused,
    "streamed": streamed,
    "streamed+offload": functools.partial(streamed, offload=True),
    "pipelined": pipelined,
}


def named(kind: str, table: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    """The function ``table[name]``, or for a name such as ``package.module:function`` the one that is there.

    Raises:
      UserError: if the name is not known, or cannot be imported.
    """
    module, colon, function = str(name).partition(":")
    if not colon:
        return table[one_of(kind, name, tuple(table))]
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module raises
        raise UserError(
            f"{kind} {name!r} cannot be imported ({one_line(error)}): write package.module:function, of a module in "
            "the directory where the program is started, or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"{kind} {name!r} is a {type(found).__name__}: give a function")
    return found


def make(kind: str, table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], **given: Any) -> Any:
    """Calls what ``spec['name']`` names, as in :func:`named`, with the other entries of ``spec``, and ``given``.

    Raises:
      UserError: if the name or a parameter is not known, or the function rejects a value.
    """
    parameters = {key: value for key, value in spec.items() if key != "name"}
    function = named(kind, table, spec["name"])
    signature = inspect.signature(function).parameters
    for name in given:
        if name not in signature:
            raise UserError(f"{kind} {spec['name']} has to take the keyword {name!r}, which every {kind} is given")
    known = [name for name in signature if name not in given]
    for parameter in parameters:
        if not known:
            raise UserError(f"{kind} {spec['name']} takes no parameters, but the config sets {parameter!r}")
        one_of(f"parameter of {kind} {spec['name']}:", parameter, known)
    hints = get_type_hints(function)
    for parameter, value in parameters.items():
        if parameter in hints and not fits(value, hints[parameter]):
            raise UserError(f"{kind} {spec['name']}: {parameter}={value!r}: expected {_shown(hints[parameter])}")
    with user_input(f"{kind} {spec['name']}"):
        return function(**parameters, **given)


def fits(value: Any, hint: Any) -> bool:
    """Whether a config's value is of an annotated type; a bool is no number, and a number is finite in float32."""
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, tuple | list) and all(fits(x, get_args(hint)[0]) for x in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max)
    return type(value) is hint


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("collections.abc.", "")


def make_rule(spec: Mapping[str, Any]) -> Rule:
    """The rule of a config; the field ``rule`` of one that wraps another is a rule in turn.

    Raises:
      UserError: as :func:`make`, or if the rule that is to be wrapped is missing.
    """
    inner = {key: value for key, value in spec.items() if key != "rule"}
    function = named("rule", RULES, spec["name"])
    if "rule" not in inspect.signature(function).parameters:
        return make("rule", RULES, spec)
    if not isinstance(spec.get("rule"), Mapping | ConfigDict) or "name" not in spec["rule"]:
        raise UserError(f"rule {spec['name']} wraps another rule: give rule.rule.name, or write {spec['name']}(dgl)")
    return make("rule", RULES, inner, rule=make_rule(spec["rule"]))


def listing() -> str:
    """What ``--list`` prints: every config with what it is, every other name with its parameters and defaults."""
    lines = [f"{'config':<10} {path.stem:<28}{headline(path)}" for path in sorted(CONFIGS.glob("[a-z]*_*.py"))]
    for kind, table in (("rule", RULES), ("model", MODELS), ("optimizer", OPTIMIZERS)):
        for name, function in sorted(table.items()):
            shown = ", ".join(
                str(parameter.replace(annotation=inspect.Parameter.empty))
                for parameter in inspect.signature(function).parameters.values()
                if parameter.name not in ("learning_rate", "prototypes")
            )
            lines.append(f"{kind:<10} {name}({shown})")
    sets = (
        *data.NAMES,
        *data.OWN,
        *data.TEXTS,
        "random_SIDE_CLASSES_EXAMPLES",
        "rotated_DEGREES_NAME",
        "any image classification set of TFDS, as imagenet2012",
    )
    return "\n".join((*lines, *(f"{'data set':<10} {name}" for name in sets)))
