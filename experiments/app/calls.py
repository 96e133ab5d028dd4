"""Rules and models written as calls: ``man(dgl, decay=0.9)``, or ``package.module:function(width=2)``."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.app.errors import UserError

_IMPORTED = re.compile(r"\b(?:\w+\.)*\w+:\w+(?=\s*(?:[(,)]|$))")


def parse_calls(text: str, flag: str, own: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Reads ``auglocal, man(dgl), infopro(contrast=True)``: rules or models as calls, without quotes around them.

    Args:
      text: what to read.
      flag: that it was given to.
      own: a rule with parameters, which a bare mention of its name stands for.

    Returns:
      The config of each rule, by the text that it was written in.

    Raises:
      UserError: if it is not a list of calls, or names one twice.
    """
    imported: dict[str, str] = {}  # package.module:function, by an identifier that stands for it

    def hide(match: re.Match[str]) -> str:
        imported[hidden := f"imported_{len(imported)}_"] = match[0]
        return hidden

    def spec(node: ast.expr) -> dict[str, Any]:
        if isinstance(node, ast.Name):
            name = imported.get(node.id, node.id)
            return dict(own) if own and name == own["name"] else {"name": name}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) > 1:
            raise ValueError(f"{ast.unparse(node)!r} is not a call")
        given = {str(keyword.arg): literal(keyword) for keyword in node.keywords}
        if given.keys() & {"name", "rule", "None"}:
            raise ValueError(f"{ast.unparse(node)!r} gives the rule it wraps, or its own name, as a keyword")
        name = imported.get(node.func.id, node.func.id)
        return {"name": name, **({"rule": spec(node.args[0])} if node.args else {}), **given}

    def literal(keyword: ast.keyword) -> Any:
        try:
            return ast.literal_eval(keyword.value)
        except ValueError:
            raise ValueError(f"{ast.unparse(keyword)} is no number, truth value, tuple or quoted string") from None

    try:
        nodes = ast.parse(f"({_IMPORTED.sub(hide, text)},)", mode="eval").body
        assert isinstance(nodes, ast.Tuple)
        calls = [
            (re.sub(r"imported_\d+_", lambda match: imported[match[0]], ast.unparse(node)), spec(node))
            for node in nodes.elts
        ]
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"--{flag}={text}: write calls with commas between, as auglocal,man(dgl),predsim(width=2) ({error})"
        ) from error
    if len(dict(calls)) < len(calls):
        raise UserError(f"--{flag}={text}: name each once")
    return dict(calls)


def parse_call(text: str, flag: str, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads one call: its config.

    Raises:
      UserError: as :func:`parse_calls`, or if there are several.
    """
    specs = list(parse_calls(text, flag, own).values())
    if len(specs) != 1:
        raise UserError(f"--{flag}={text}: give one rule, model or optimizer as one call, not {len(specs)}")
    return specs[0]


def innermost(spec: Any) -> Any:
    """The config, within that of a rule, of the one that wraps no other."""
    return innermost(spec["rule"]) if "rule" in spec else spec


def called(rule: ConfigDict) -> str:
    """A rule's name, and those of the rules in it: ``remat(auglocal)``."""
    return f"{rule.name}({called(rule.rule)})" if "rule" in rule else rule.name


def as_call(spec: Mapping[str, Any]) -> str:
    """A rule as a call: ``man(dgl, decay=0.9)``."""
    inner = [as_call(spec["rule"])] if "rule" in spec else []
    own = [f"{key}={value!r}" for key, value in spec.items() if key not in ("name", "rule")]
    return f"{spec['name']}({', '.join(inner + own)})" if inner or own else str(spec["name"])
