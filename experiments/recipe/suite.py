"""Suites of a benchmark: tasks, each with a recipe and the rules that train under it, from one file."""

import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.app.calls import parse_call
from experiments.app.errors import UserError, one_line, one_of, user_input
from experiments.app.files import given_path
from experiments.recipe.fields import plain

HOUSE = Path(__file__).parents[1]


class Row(NamedTuple):
    """A rule under a task's recipe.

    Attributes:
      rule: as a call.
      cuts: of it; those of the recipe if empty.
      set: what else differs from the task's recipe, by the fields' names: ``optimizer.clip``.
      published: the figure that it is held against, as it is printed; empty if there is none.
      note: a word on it.
    """

    rule: str
    cuts: str = ""
    set: Mapping[str, Any] = {}
    published: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """What tells it from the other rows of its task."""
        options = {"cuts": self.cuts, **self.set} if self.cuts else self.set
        return "@".join(
            [self.rule, *([",".join(f"{key}={value}" for key, value in options.items())] if options else [])]
        )


class Task(NamedTuple):
    """A recipe, and what trains under it.

    Attributes:
      name: short; of its directory.
      title: of its table.
      config: a file of ``experiments/configs``, by name, or a path.
      seeds: of each row.
      set: what differs from the config.
      rows: the first one is what memory, FLOPs and time of the others are relative to.
    """

    name: str
    title: str
    config: str
    seeds: int
    set: Mapping[str, Any]
    rows: tuple[Row, ...]


class Suite(NamedTuple):
    """Tasks, by worth."""

    title: str
    tasks: tuple[Task, ...]

    def runs(self) -> Iterator[tuple[Task, Row, int]]:
        """All of them, by seeds counted from 0: one of everything first."""
        for n in range(max(task.seeds for task in self.tasks)):
            yield from ((task, row, n) for task in self.tasks if n < task.seeds for row in task.rows)


def read(which: str) -> Suite:
    """A suite of ``experiments/suites`` by its name, or the one of a file.

    Raises:
      UserError: if there is none, or it is not as it should be.
    """
    path, known = given_path(which, "--suite"), sorted(path.stem for path in (HOUSE / "suites").glob("*.toml"))
    if path.suffix != ".toml":
        path = HOUSE / "suites" / f"{one_of('suite', which, known)}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--suite={which}: {error.strerror}; known are {', '.join(known)}") from error
    except ValueError as error:
        raise UserError(f"--suite={which}: {one_line(error)}") from error
    with user_input(f"--suite={which}"):
        return _suite(content)


def _suite(content: Mapping[str, Any]) -> Suite:
    fields = _checked(content, "a suite", title=str, task=list)
    tasks = []
    for given in fields["task"]:
        task = _checked(given, "a task", name=str, title=str, config=str, rows=list, seeds=(int, 1), set=(dict, {}))
        where = f"task {task['name']}"
        rows = [
            _checked(
                row, f"{where}: a row", rule=str, cuts=(str, ""), set=(dict, {}), published=(str, ""), note=(str, "")
            )
            for row in task["rows"]
        ]
        found = Task(**{**task, "rows": tuple(Row(**row) for row in rows)})
        if not re.fullmatch(r"[\w.-]+", found.name):
            raise ValueError(f"{where}: the name is of a directory: letters, digits, _ . and - alone")
        if not found.rows or found.seeds < 1:
            raise ValueError(f"{where}: rows and seeds are needed, one at least")
        if len({row.name for row in found.rows}) < len(found.rows):
            raise ValueError(f"{where}: two rows are the same")
        tasks.append(found)
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise ValueError("tasks are needed, each with a name of its own")
    return Suite(fields["title"], tuple(tasks))


def _checked(given: Any, what: str, **fields: Any) -> dict[str, Any]:
    """The fields of a table; those with a default may be missing."""
    if not isinstance(given, dict):
        raise ValueError(f"{what} is a table, not {given!r}")
    for name in given:
        if name not in fields:
            raise ValueError(f"{what} has no field {name!r}; it has {', '.join(fields)}")
    found = {}
    for name, kind in fields.items():
        kind, *default = kind if isinstance(kind, tuple) else (kind,)
        if name not in given and not default:
            raise ValueError(f"{what} needs {name!r}")
        found[name] = given.get(name, *default)
        if type(found[name]) is not kind:
            raise ValueError(f"{what}: {name} = {found[name]!r}: expected {kind.__name__}")
    return found


def rows_of(text: str) -> list[Row]:
    """Reads ``mine(depth=2)@2,4;mine``: rules as calls, with cuts behind an ``@`` if they are not the recipe's."""
    parts = (part.partition("@") for part in filter(str.strip, text.split(";")))
    rows = (Row(rule.strip(), cuts.strip()) for rule, _, cuts in parts)
    return list({row.name: row for row in rows}.values())


def chosen(suite: Suite, only: Sequence[str], seeds: int | None, added: Sequence[Row]) -> Suite:
    """A part of a suite, with rows of one's own in each of its tasks.

    Args:
      suite: whose tasks they are.
      only: names of tasks; all if empty.
      seeds: of each row at most.
      added: the rows.

    Raises:
      UserError: if there is no such task.
    """
    names = [task.name for task in suite.tasks]
    for name in only:
        one_of("task", name, names)
    tasks = [task for task in suite.tasks if not only or task.name in only]
    return suite._replace(
        tasks=tuple(
            task._replace(
                seeds=min(task.seeds, seeds or task.seeds),
                rows=(*task.rows, *(row for row in added if row.name not in {own.name for own in task.rows})),
            )
            for task in tasks
        )
    )


def recipe(task: Task, row: Row, seed: int) -> ConfigDict:
    """The config of a run; ``seed`` is counted from the config's.

    Raises:
      UserError: if there is no such config, or a field is none of its.
    """
    config = _config(task.config)
    with user_input(f"task {task.name}, {row.name}"):
        for name, value in {**task.set, **row.set}.items():
            _set(config, name, value)
        config.rule = ConfigDict(parse_call(row.rule, "rule", config.rule))
        config.cuts = row.cuts or config.cuts
        config.seed += seed
    return plain(config)


def command(task: Task, row: Row) -> str:
    """What trains a row by itself."""
    path = task.config if task.config.endswith(".py") else f"experiments/configs/{task.config}.py"
    given = {**task.set, **row.set, "rule": row.rule, **({"cuts": row.cuts} if row.cuts else {})}
    words = [f"--config={path}", *(f"--config.{name}={value}" for name, value in given.items())]
    return " ".join(["python -m experiments.train", *map(shlex.quote, words), "--workdir=DIR"])


def _config(which: str) -> ConfigDict:
    path = given_path(which, "config") if which.endswith(".py") else HOUSE / "configs" / f"{which}.py"
    try:
        return runpy.run_path(str(path))["get_config"]()
    except OSError as error:
        raise UserError(f"config {which}: {error.strerror}: {path}") from error
    except KeyError as error:
        raise UserError(f"config {path}: it has no {one_line(error)}") from error
    except Exception as error:  # a user's own file
        raise UserError(f"config {path}: {type(error).__name__}: {one_line(error)}") from error


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *within, last = name.split(".")
    for part in within:
        config = config[one_of("field", part, tuple(config))]
    one_of("field", last, tuple(config))
    if isinstance(config[last], ConfigDict):
        value = ConfigDict(parse_call(value, name))
    elif isinstance(value, list):
        value = tuple(value)
    config[last] = value
