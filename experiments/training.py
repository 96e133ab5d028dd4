"""The training loop: steps, log lines, evaluations, checkpoints."""

import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import build as building
from experiments import cost, processes
from experiments.build import Experiment, build, describe, environment
from experiments.checkpoint import NOT_EVALUATED, Checkpoints, has_any
from experiments.record import Chrono, Profiler, Recorder, by_seed, format_blocks, mean, tested
from experiments.trained import start_from
from experiments.workdir import claim
from jaxlocal.executors import BlockMetrics, TrainState


class Results(NamedTuple):
    """What a run came to.

    Attributes:
      workdir: where its files are.
      history: the lines of ``metrics.jsonl``.
      about: cuts and parameter counts, as in ``config.json``.
      seeds: for each seed, the metrics of each exit on the test split; empty if stopped
        before any evaluation.
      stopped_by: the signal that ended the run early; None if it ran to its end.
    """

    workdir: Path
    history: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]
    seeds: Sequence[Sequence[Mapping[str, float]]]
    stopped_by: signal.Signals | None


def train_and_evaluate(
    config: ConfigDict, workdir: Path, experiment: Experiment | None = None, *, profile: bool = False
) -> Results:
    """Trains a config to its end, or on from where ``workdir`` stands.

    Args:
      config: as :mod:`experiments.configs` makes them.
      workdir: made if need be; must not hold a run of another config.
      experiment: the config, built, if it was before; its seed may be another.
      profile: whether to trace a few steps, into ``workdir/profile``.

    Raises:
      UserError: if the config, the data set or the workdir cannot be used.
    """
    experiment = experiment or build(config)
    state = experiment.init(config)
    if config.start_from and not has_any(workdir):
        whole = start_from(Path(config.start_from), experiment, _whole(experiment, state))
        state = experiment.executor.place(whole)
    about = describe(experiment, state, config.seeds)
    claim(workdir, config, about, environment())
    _announce(config, about)
    with closing(Checkpoints(workdir)) as checkpoints, _signals() as received:
        last, saved = checkpoints.resume(_whole(experiment, state))
        if last:
            state = experiment.executor.place(saved)
            what = "is finished:" if last == experiment.num_steps else "goes on"
            print(f"{workdir} {what} at step {last} of {experiment.num_steps}", flush=True)
        with (
            closing(Recorder(workdir, last, config.seed)) as recorder,
            closing(Profiler(workdir / "profile", last if profile else None)) as profiler,
            closing(experiment.batches(config, range(last, experiment.num_steps))) as batches,
        ):
            if config.start_from and not recorder.history:
                _test(0, state, config, experiment, recorder)
            seeds, stopped_by = _loop(
                config, experiment, state, last, batches, recorder, checkpoints, received, profiler
            )
    return Results(workdir, recorder.history, about, seeds, stopped_by)


def _loop(
    config: ConfigDict,
    experiment: Experiment,
    state: TrainState,
    first_step: int,
    batches: Iterator[Any],
    recorder: Recorder,
    checkpoints: Checkpoints,
    received: Sequence[signal.Signals],
    profiler: Profiler,
) -> tuple[Sequence[Sequence[Mapping[str, float]]], signal.Signals | None]:
    """Steps, log lines, evaluations and checkpoints, until the end or a signal: ``(seeds, stopped by)``.

    Metrics are those of single steps, and the fetch of one step's waits until as many more steps are under
    way as there are stages, so no device idles for them.
    """
    chrono = Chrono(experiment.num_steps, config.batch_size * config.seeds)
    seeds: Sequence[Sequence[Mapping[str, float]]] | None = None
    unlogged: deque[tuple[int, BlockMetrics]] = deque()

    def log(until: int) -> bool:
        """Logs what is due of the steps up to ``until``, and says whether there was anything."""
        due = [unlogged.popleft() for _ in range(sum(step <= until for step, _ in unlogged))]
        for step, metrics in due:
            _log(step, metrics, experiment, recorder, chrono)
        return bool(due)

    for step, batch in zip(range(first_step, experiment.num_steps), batches, strict=True):
        if step == first_step:
            compiled = cost.of_step(experiment, config, state, batch)
        profiler.before(step, state)
        state, metrics = experiment.executor.step(state, batch)
        done = step + 1
        logged = log(done - len(experiment.stages))
        if not chrono.running:
            jax.block_until_ready(state)
            print(
                f"first step, compilation included, in {chrono.start(done):.1f} s; {compiled.flops / 1e6:,.1f} MFLOP "
                f"per example, {compiled.temporaries / cost.MIB:,.1f} MiB of temporaries",
                flush=True,
            )
        if done % experiment.log_every == 0 or done == experiment.num_steps:
            unlogged.append((done, metrics))
        evaluate_now = done % experiment.eval_every == 0 or done == experiment.num_steps
        # Processes have to stop at the same step, so they ask each other, but not at every step.
        stopping = processes.agreed(bool(received)) if processes.alone() or logged else False
        if evaluate_now or stopping:
            log(done)
        if evaluate_now:
            jax.block_until_ready(state)  # what is still under way is training time
            with chrono.paused():
                seeds = _test(done, state, config, experiment, recorder)
                whole = _whole(experiment, state)
                checkpoints.save(done, whole, mean(seeds)[-1].get("accuracy", NOT_EVALUATED))
        if stopping:
            stopped_by = (*received, signal.SIGTERM)[0]  # or another process was
            print(f"{stopped_by.name}: saving step {done} (again to give it up)", flush=True)
            checkpoints.save(done, _whole(experiment, state))
            checkpoints.wait()
            print(f"step {done} is saved; the same command goes on from there", flush=True)
            return seeds or (), stopped_by
    if seeds is None:  # there was nothing left to do
        seeds = tested(recorder.history, first_step) or building.evaluate(experiment, state, config)
        print(f"test\n{format_blocks(mean(seeds))}", flush=True)
    return seeds, None


def _whole(experiment: Experiment, state: TrainState) -> TrainState:
    """The state as every process can save it."""
    step, key = processes.everywhere((state.step, state.key))
    return TrainState(step, key, experiment.executor.gather(state.blocks))


def _log(step: int, metrics: BlockMetrics, experiment: Experiment, recorder: Recorder, chrono: Chrono) -> None:
    """One line of training metrics, to the files and the terminal."""
    seeds = by_seed(experiment.executor.gather(metrics))
    rate = float(experiment.schedule(step - 1))
    epoch = step / experiment.steps_per_epoch
    recorder.write(step, "train", seeds, epoch=epoch, learning_rate=rate)
    images_per_second, to_go = chrono.read(step)
    recorder.timing(step, images_per_second)
    print(
        f"step {step}/{experiment.num_steps}  epoch {epoch:.2f}  {images_per_second:,.0f} img/s  ETA {to_go}  "
        f"lr {rate:.4g}\n{format_blocks(mean(seeds))}",
        flush=True,
    )


def _test(
    step: int, state: TrainState, config: ConfigDict, experiment: Experiment, recorder: Recorder
) -> Sequence[Sequence[Mapping[str, float]]]:
    """Evaluates every exit, for each seed, and writes it to the files and the terminal."""
    seeds = building.evaluate(experiment, state, config)
    recorder.write(step, "test", seeds)
    print(f"step {step} test\n{format_blocks(mean(seeds))}", flush=True)
    return seeds


def _announce(config: ConfigDict, about: Mapping[str, Any]) -> None:
    """What is about to be trained."""
    units = sum(p["network"] for p in about["parameters"])
    heads = sum(p["head"] for p in about["parameters"])
    stages = f", in stages from blocks {about['stages']}" if len(about["stages"]) > 1 else ""
    print(
        f"{config.rule.name} on {config.model.name}, {config.dataset}: {about['units']} units in "
        f"{len(about['parameters'])} blocks (cuts {about['cuts']}), {units:,} parameters, {heads:,} in heads; "
        f"{about['num_steps']} steps of {config.batch_size}{stages}",
        flush=True,
    )


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM, to be obeyed between two steps; a second one acts at once."""
    received: list[signal.Signals] = []
    old: dict[signal.Signals, Any] = {}

    def handler(number: int, frame: Any) -> None:
        del frame
        received.append(signal.Signals(number))
        for sig, previous in old.items():
            signal.signal(sig, previous)

    if threading.current_thread() is threading.main_thread():
        old = {sig: signal.signal(sig, handler) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for sig, previous in old.items():
            signal.signal(sig, previous)
