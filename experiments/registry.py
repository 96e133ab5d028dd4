"""Rules, models and optimizers by name, and how a config's ``{name: ..., **parameters}`` becomes one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from experiments.cli import UserError, one_of, user_input
from experiments.optimizers import OPTIMIZERS
from jaxlocal import data, models, rules

RULES: Mapping[str, Callable[..., Any]] = {name: getattr(rules, name) for name in rules.__all__}
MODELS: Mapping[str, Callable[..., Any]] = {
    "convnet": models.convnet,
    "mlp": models.mlp,
    "resnet": models.resnet,
}


def make(kind: str, table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], **given: Any) -> Any:
    """Calls ``table[spec['name']]`` with the other entries of ``spec``, and ``given``.

    Raises:
      UserError: if the name or a parameter is not known, or the function rejects a value.
    """
    parameters = {key: value for key, value in spec.items() if key != "name"}
    function = table[one_of(kind, spec["name"], tuple(table))]
    known = [name for name in inspect.signature(function).parameters if name not in given]
    for parameter in parameters:
        if not known:
            raise UserError(f"{kind} {spec['name']} takes no parameters, but the config sets {parameter!r}")
        one_of(f"parameter of {kind} {spec['name']}:", parameter, known)
    with user_input(f"{kind} {spec['name']}"):
        return function(**parameters, **given)


def listing() -> str:
    """What ``--list`` prints: every name with its parameters and defaults."""
    lines = []
    for kind, table in (("rule", RULES), ("model", MODELS), ("optimizer", OPTIMIZERS)):
        for name, function in sorted(table.items()):
            shown = ", ".join(
                str(parameter).split(":")[0].strip() + _default(parameter)
                for parameter in inspect.signature(function).parameters.values()
                if parameter.name not in ("loss", "learning_rate")
            )
            lines.append(f"{kind:<10} {name}({shown})")
    return "\n".join((*lines, *(f"{'data set':<10} {name}" for name in data.NAMES)))


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
