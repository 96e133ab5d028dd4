"""Faults: a run is killed, its files are damaged or may not grow, a loss is NaN; and what becomes of it."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import DIVERGED, NOT_SAVED, UserError
from experiments.app.files import read_lines
from experiments.app.program import cache_compilations
from experiments.configs import common
from experiments.recipe.build import build
from experiments.recipe.registry import RULES
from experiments.training.checkpoint import checksum
from experiments.training.loop import train_and_evaluate
from experiments.training.trained import restore
from experiments.training.workdir import load_config
from jaxlocal.network import Network
from jaxlocal.objective import Batch, Carry, ObjectiveOut
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task
from jaxlocal.variables import Key, Variables

STEPS, POISONED = 60, 23


def poisoned(rule: Rule, block: int = 0, step: int = 0, seed: int = 0, device: int | None = None) -> Rule:
    """The same rule, but for one block's loss at one step of a seed's run, which is NaN.

    Args:
      rule: of all blocks.
      block: whose loss.
      step: counted from 0.
      seed: of the run.
      device: on which, where examples are split over devices.
    """

    def wrapped(network: Network, task: Task) -> tuple[Network, LocalRule]:
        network, local = rule(network, task)
        of_step = jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)
        of_device = of_step if device is None else jax.random.fold_in(of_step, device)
        of_block = jax.random.split(jax.random.fold_in(of_device, block))[1]
        of_head = jax.random.key_data(jax.random.split(of_block)[1])

        def apply(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
            out = inner.apply(variables, carry, batch, key, train=train)
            hit = jnp.all(jax.random.key_data(key) == of_head)
            return out._replace(loss=out.loss * jnp.where(hit, jnp.nan, 1).astype(out.loss.dtype))

        inner = local.objectives[block]
        objectives = list(local.objectives)
        objectives[block] = inner._replace(apply=apply)
        return network, local._replace(objectives=tuple(objectives))

    return wrapped


def small(**changes: Any) -> ConfigDict:
    """Four blocks on digits, whose heads also follow the next block's averages."""
    config = common.digits()
    config.model = ConfigDict({"name": "mlp", "features": (32, 32, 32, 32)})
    config.rule = ConfigDict({"name": "man", "rule": {"name": "greedy"}})
    config.schedule = "constant"
    config.batch_size = 32
    return short(config, **changes)


def short(config: ConfigDict, **changes: Any) -> ConfigDict:
    """The config for a run of sixty steps that is saved at every tenth, unless a change says otherwise."""
    config = ConfigDict(config.to_dict())
    config.duration, config.eval_every, config.log_every = f"{STEPS} steps", "10 steps", "1 steps"
    for field, value in changes.items():
        config[field] = value
    return config


class Outcome:
    """What became of a run in a process of its own.

    Attributes:
      code: exit code; negative for a signal.
      errors: what it wrote to stderr.
    """

    def __init__(self, config: ConfigDict, workdir: Path, after: float | None = None, limit: int | None = None) -> None:
        """Runs it; kills it ``after`` seconds, or lets no file become larger than ``limit`` bytes."""
        log = workdir.with_suffix(".log")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["experiments.trials.injected"])  # imports take longer than the run
        process = context.Process(target=_train, args=(config.to_dict(), workdir, log, limit))
        process.start()
        process.join(after)
        process.kill()
        process.join()
        self.code = process.exitcode
        self.errors = log.read_text(encoding="utf-8") if log.exists() else ""

    @property
    def traceback(self) -> bool:
        """Whether a user would have seen one."""
        return "Traceback" in self.errors


def _train(config: dict[str, Any], workdir: Path, log: Path, limit: int | None) -> None:
    """In the process."""
    write = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(write, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    cache_compilations()
    RULES["poisoned"] = poisoned
    try:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        train_and_evaluate(build(ConfigDict(config)), workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def same(a: Path, b: Path) -> bool:
    """Whether two runs have bitwise the same metrics file, last and best checkpoint."""
    if (a / "metrics.jsonl").read_bytes() != (b / "metrics.jsonl").read_bytes():
        return False
    for which in ("last", "best"):
        first, second = restore(a, which), restore(b, which)
        if first.step != second.step or checksum(first.state) != checksum(second.state):
            return False
    return True


def kills(times: int, whole: Path, workdir: Path, rng: random.Random) -> dict[str, Any]:
    """Kills a run again and again, then lets it end."""
    shutil.rmtree(workdir, ignore_errors=True)
    began, steps, tracebacks, runs, lost = time.monotonic(), [], 0, 0, 0
    config = load_config(whole)
    alone = Outcome(config, workdir)  # as long as a run takes from beginning to end
    longest = time.monotonic() - began
    shutil.rmtree(workdir)
    killed, before = 0, 0
    while killed < times:
        after = rng.uniform(0, longest)
        outcome = Outcome(config, workdir, after=after)
        tracebacks += outcome.traceback
        if outcome.code == 0:  # it was done before
            runs += 1
            lost += not same(whole, workdir)
            shutil.rmtree(workdir)
            before = 0
            continue
        lost += outcome.code != -signal.SIGKILL  # it ended by itself, refusing to go on
        killed += 1
        steps.append(len(read_lines(workdir / "metrics.jsonl")))
        if after > longest / 2 and steps[-1] <= before:
            longest *= 1.1  # it came no further than the one before: the machine is slower than it was
        before = steps[-1]
        print(f"killed {killed} of {times}, with {steps[-1]} lines of metrics", flush=True)
    last = Outcome(config, workdir)
    tracebacks += last.traceback + alone.traceback
    lost += not (last.code == 0 and same(whole, workdir))
    return {
        "injected": killed,
        "lines_when_killed": steps,
        "runs_that_ended": runs + 1,
        "tracebacks": tracebacks,
        "lost": lost + tracebacks,
    }


def cuts(whole: Path, workdir: Path, damages: Sequence[str] = ("emptied", "halved", "removed")) -> dict[str, Any]:
    """Damages each file of the newest checkpoint in each of these ways; the run then goes on from where it can."""
    newest = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    outcomes: dict[str, str] = {}
    equal, tracebacks = 0, 0
    for file in files:
        for how in damages:
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.copytree(whole, workdir)
            target = workdir / file.relative_to(whole)
            if how == "removed":
                target.unlink()
            else:
                os.truncate(target, target.stat().st_size // 2 if how == "halved" else 0)
            outcome = Outcome(load_config(whole), workdir)
            tracebacks += outcome.traceback
            aside = (workdir / "damaged").exists()
            good = outcome.code == 0 and same(whole, workdir)
            equal += good
            name = f"{file.relative_to(newest)} {how}"
            outcomes[name] = ("equal" if good else f"code {outcome.code}: {outcome.errors}") + ", set aside" * aside
    lost = len(outcomes) - equal + tracebacks
    return {"injected": len(outcomes), "tracebacks": tracebacks, "outcomes": outcomes, "lost": lost}


def limits(times: int, whole: Path, workdir: Path, rng: random.Random) -> dict[str, Any]:
    """Lets no file grow beyond a random limit, until the run ends with one line; then lifts the limit."""
    config = load_config(whole)
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    codes, tracebacks, lines, equal = [], 0, 0, 0
    for _ in range(times):
        shutil.rmtree(workdir, ignore_errors=True)
        limit = max(512, int(largest ** rng.uniform(0.3, 1)))  # stderr is a file, too, and has to hold the line
        outcome = Outcome(config, workdir, limit=limit)
        codes.append(outcome.code)
        tracebacks += outcome.traceback
        lines += outcome.code == 0 or sum(line.startswith("error: ") for line in outcome.errors.splitlines()) == 1
        equal += Outcome(config, workdir).code == 0 and same(whole, workdir)
    return {
        "injected": times,
        "stopped": sum(code == NOT_SAVED for code in codes),
        "codes": codes,
        "one_line": lines,
        "tracebacks": tracebacks,
        "lost": (times - lines) + (times - equal) + tracebacks,
    }


def poison(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """NaN in each block, under each ``on_divergence``."""
    found: dict[str, Any] = {}
    for block in range(len(build(config).blocks)):
        for action, code in (("stop", DIVERGED), ("skip", 0), ("rollback", 0)):
            shutil.rmtree(workdir, ignore_errors=True)
            rule = {"name": "poisoned", "rule": config.rule.to_dict(), "block": block, "step": POISONED}
            outcome = Outcome(short(config, rule=ConfigDict(rule), on_divergence=action), workdir)
            named = f"block {block} diverged at step {POISONED + 1} (" in outcome.errors
            saved = (workdir / "postmortem" / f"step_{POISONED + 1}.npz").exists()
            found[f"block {block}, {action}"] = outcome.code == code and named and saved and not outcome.traceback
    return {"injected": len(found), "outcomes": found, "lost": len(found) - sum(found.values())}


def soak(config: ConfigDict, steps: int, workdir: Path) -> dict[str, Any]:
    """A long run, and what grows in it after its first tenth."""
    compiled, samples, ended = [0], [], threading.Event()

    def count(event: str, duration_secs: float, **kwargs: Any) -> None:
        del duration_secs, kwargs
        compiled[0] += event == "/jax/core/compile/backend_compile_duration"

    def watch() -> None:
        metrics = workdir / "metrics.jsonl"
        while not ended.wait(0.05):
            done = read_lines(metrics)[-1:] if metrics.exists() else []
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            samples.append(
                {
                    "step": done[0]["step"] if done else 0,
                    "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
                    "threads": int(status["Threads"]),
                    "files": len(os.listdir("/proc/self/fd")),
                    "compilations": compiled[0],
                }
            )

    jax.monitoring.register_event_duration_secs_listener(count)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    evaluations = 20
    config = short(
        config, duration=f"{steps} steps", eval_every=f"{steps // evaluations} steps", log_every=f"{steps // 100} steps"
    )
    began = time.monotonic()
    train_and_evaluate(build(config), workdir)
    ended.set()
    watcher.join()
    late = [sample for sample in samples if sample["step"] >= steps // 10]
    if len(late) < 2:
        raise UserError(f"--soak={steps}: too short to be watched, give more steps")
    halves = late[: len(late) // 2], late[len(late) // 2 :]
    levels: dict[str, Any] = {"rss_mib": np.max, "threads": np.median, "files": np.median, "compilations": np.max}
    found = {what: [float(of([x[what] for x in half])) for half in halves] for what, of in levels.items()}
    # A checkpoint that is being written has threads and files of its own, and pools start theirs one by one. What is
    # left behind at every evaluation comes to twice as many from the one half to the other.
    few = evaluations // 4
    room = {"rss_mib": 0.05 * found["rss_mib"][0], "threads": few, "files": few, "compilations": 0}
    grown = [what for what, (first, second) in found.items() if second > first + room[what]]
    return {"steps": steps, "seconds": time.monotonic() - began, **found, "lost": len(grown)}
