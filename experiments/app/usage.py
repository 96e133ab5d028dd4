"""What ``--help`` says: what a program is for and the flags that are its own, not those of what it imports."""

import ast
import re
import sys
from pathlib import Path

from absl import flags

ASKED = ("--help", "-help", "-h", "-?", "--helpshort")


def headline(path: Path) -> str:
    """The first line of what a file says of itself. It is read, not run."""
    return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0].replace("``", "`")


def usage() -> str:
    """The docstring of the program that runs, as text for a terminal, and its flags with their defaults."""
    text = sys.modules["__main__"].__doc__ or ""
    text = re.sub(r"\.\. code-block:: \w+\n\n", "", text).replace("``", "`")
    text = re.sub(r":(?:func|class|mod|meth):`~?([\w.]+)`", r"\1", text)
    return f"{text.strip()}\n{_own_flags().get_help(include_special_flags=False)}"


def _own_flags() -> flags.FlagValues:
    """Those that the program defined, or a module of ours on its behalf."""
    modules = flags.FLAGS.flags_by_module_dict()
    ours = [
        flag
        for name, found in modules.items()
        if name == sys.argv[0] or name.startswith("experiments.")
        for flag in found
    ]
    own = flags.FlagValues()
    for flag in sorted(ours, key=lambda flag: flag.name):
        own[flag.name] = flag
        own.register_flag_by_module("flags", flag)  # the heading
    return own
