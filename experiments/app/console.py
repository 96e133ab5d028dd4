"""The command ``jaxlocal``: the programs, from any directory, whatever packages are there."""

import runpy
import sys
from pathlib import Path

from experiments.app.errors import BAD_INPUT, UserError, one_of
from experiments.app.usage import headline

_PROGRAMS = Path(__file__).parents[1]


def main() -> None:
    """``jaxlocal train --config=...`` is ``python -m experiments.train --config=...``; alone it names the programs."""
    known = {path.stem: path for path in sorted(_PROGRAMS.glob("*.py")) if not path.stem.startswith("_")}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print("jaxlocal PROGRAM --flag=value ...; of each, jaxlocal PROGRAM --help tells the flags\n")
        for program, path in known.items():
            print(f"  {program:<18}{headline(path)}")
        return
    try:
        one_of("program", name, tuple(known))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from error
    del sys.argv[1]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
