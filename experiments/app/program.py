"""How every program starts, and ends with one line where something that it was given is wrong."""

import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments.app.calls import parse_call
from experiments.app.errors import BAD_INPUT, EXHAUSTED, UserError, one_line
from experiments.app.files import given_path
from experiments.app.output import discard
from experiments.app.usage import ASKED, usage
from jaxlocal.data.sources import default_cache_dir

CONFIGS = Path(__file__).parents[1] / "configs"


def run(main: Callable[..., int | None], *, arguments: bool = False) -> None:
    """Parses the flags and runs ``main``; a :class:`UserError` ends in one line and its exit code.

    Args:
      main: is given the arguments that are no flags; returns the exit code.
      arguments: whether there may be any.
    """
    debug = flags.DEFINE_bool("debug", False, "Show the traceback of an error in what was given.")  # of a program alone
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no ÷ is no reason to end
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as it was while importing
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def parse(argv: Sequence[str]) -> list[str]:
        if {*argv[1:]} & {*ASKED}:
            print(usage())
            raise SystemExit
        try:
            return flags.FLAGS([_config_by_name(_call_as_dict(argument)) for argument in argv])
        except Exception as error:
            said = one_line(error)
            names = (argument.split("=")[0] for argument in argv)
            flag = next((name for name in names if f"'{name.split('.')[-1]}' Did you mean" in said), None)
            raise _stop(UserError(f"{flag}: {said}") if flag else error) from error

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1 and not arguments:
            raise _stop(UserError(f"unexpected argument {argv[1]!r}: flags are given as --name=value"))
        cache_compilations()
        try:
            return main(*argv[1:])
        except UserError as error:
            if debug.value:
                raise
            raise _stop(error) from error
        except (RuntimeError, AssertionError) as error:
            known = _said_of_devices(error)
            if debug.value or not known:
                raise
            raise _stop(known) from error
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from error
        except BrokenPipeError as error:  # as under `| head`
            discard(sys.stdout)
            raise SystemExit(128 + signal.SIGPIPE) from error

    app.run(guarded, flags_parser=parse)


def required(flag: flags.FlagHolder, what: str) -> Any:
    """The value of a flag.

    Raises:
      UserError: if it was not given.
    """
    if not flag.value:
        raise UserError(f"--{flag.name} is needed: {what}")
    return flag.value


def required_path(flag: flags.FlagHolder, what: str) -> Path:
    """Likewise, a path.

    Raises:
      UserError: as :func:`required` and :func:`experiments.app.files.given_path`.
    """
    return given_path(required(flag, what), f"--{flag.name}")


def data_dir_flag() -> flags.FlagHolder:
    """Defines ``--data_dir``, for programs that look at the data of a run."""
    return flags.DEFINE_string(
        "data_dir", "", "Where the run's data are now, if not where it says: the TFDS directory, or one's own files."
    )


def cache_compilations() -> None:
    """Keeps compiled programs across runs, small ones too: initialisation compiles many. Where nothing can be, none."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # the user's own choice
        return
    directory = default_cache_dir() / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(directory, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _call_as_dict(argument: str) -> str:
    """``--config.rule=man(dgl)``, as elsewhere, is ``--config.rule={'name': 'man', 'rule': {'name': 'dgl'}}``."""
    match = re.fullmatch(r"--?(config\.(?:rule|model|optimizer))=([^{].*)", argument, re.DOTALL)
    if not match:
        return argument
    flag, text = match.groups()
    return f"--{flag}={parse_call(text, flag)}"


def _config_by_name(argument: str) -> str:
    """``--config=auglocal_digits:smoke`` is that file of ours, unless a file is called so."""
    match = re.fullmatch(r"(--?config=)(\w+)(:.*)?", argument)
    if not match or Path(match[2]).exists() or not (path := CONFIGS / f"{match[2]}.py").is_file():
        return argument
    return f"{match[1]}{path}{match[3] or ''}"


def config_flag(
    meaning: str, default: Callable[[], ConfigDict] | None = None, *, runs: bool = True
) -> Callable[[], ConfigDict]:
    """Defines ``--config`` and its overrides ``--config.field=value``; returns what reads it.

    Args:
      meaning: for ``--help``.
      default: what is read if none is given.
      runs: whether the program runs what is built of the config, which devices that are only described cannot.

    The reader raises UserError if no config was given and there is no default, its file could not be read, or it
    cannot be run.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        f"{meaning} One of ours by name, as auglocal_digits, or auglocal_digits:smoke for a run of seconds; or a file "
        "of one's own. --config.FIELD=VALUE overrides a field, --config.rule='man(dgl)' a whole rule.",
    )

    def read() -> ConfigDict:
        if holder.value is None:
            if default:
                return default()
            raise UserError("--config is needed, as --config=auglocal_digits; `jaxlocal train --list` names them")
        try:
            config = holder.value.copy_and_resolve_references()
        except OSError as error:  # a file that is not there is found out only here
            reason = str(error).splitlines()[-1].strip()
            near = get_close_matches(
                re.split("[/']", reason.rstrip("'"))[-1], [path.name for path in CONFIGS.glob("*_*.py")], n=1
            )
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--config: {reason}; {hint}configs are in {CONFIGS}, and go by name") from error
        if runs and config.get("device"):
            raise UserError(
                f"--config.device={config.device}: programs are compiled for it and cannot run; leave it out, or use "
                "experiments.plan, memory or show"
            )
        return config

    return read


def _said_of_devices(error: BaseException) -> UserError | None:
    """One line on an error that JAX raises where there is no such device, or too little memory on it; else None."""
    if isinstance(error, jax.errors.JaxRuntimeError) and EXHAUSTED in str(error):
        return UserError(
            f"the device has not enough memory ({one_line(error)}): choose a smaller batch_size, more cuts or the rule "
            "remat(...); `python -m experiments.plan` tells what fits"
        )
    frames = traceback.extract_tb(error.__traceback__)  # JAX starts backends, those that the environment names
    started = any(frame.name == "backends" and "xla_bridge" in frame.filename for frame in frames)
    platforms = os.environ.get("JAX_PLATFORMS")
    if started and platforms:
        return UserError(f"JAX_PLATFORMS={platforms}: JAX finds no such device here; leave it empty, or give cpu")
    return None


def _stop(error: Exception) -> SystemExit:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return SystemExit(error.code if isinstance(error, UserError) else BAD_INPUT)
