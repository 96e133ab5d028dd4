"""The training loop: steps, log lines, evaluations, checkpoints."""

import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from experiments.app import processes
from experiments.app.environment import environment
from experiments.app.errors import GOES_ON, UserError
from experiments.app.files import given_path, saving
from experiments.app.output import output_may_be_lost
from experiments.recipe.experiment import Blocks, Experiment
from experiments.training.checkpoint import Checkpoints, has_any
from experiments.training.clock import Chrono
from experiments.training.divergence import DivergedError, Watch, with_other_key
from experiments.training.metrics import counted, metrics_of
from experiments.training.notebook import printing_in_place
from experiments.training.online import Board, check_wandb
from experiments.training.profiling import Profiler
from experiments.training.record import Recorder
from experiments.training.results import Results, size_of, tested
from experiments.training.trained import start_from
from experiments.training.workdir import check, claimed
from jaxlocal import data
from jaxlocal.data.progress import Progress, bar_below
from jaxlocal.executors import MIB, BlockMetrics, TrainState, cost_of


@printing_in_place()
def train_and_evaluate(experiment: Experiment, workdir: Path, *, profile: bool = False) -> Results:
    """Trains to the end, or on from where ``workdir`` stands. Prints as it goes, in a notebook in one place.

    Args:
      experiment: a config, built.
      workdir: made if need be; must not hold a run of another config.
      profile: whether to trace a few steps, into ``workdir/profile``, and print where their time went.

    Raises:
      UserError: if the workdir cannot be used, or another run is using it; as
        :class:`DivergedError` or :class:`NotSavedError`, if the run cannot go on.
    """
    config = experiment.config
    check(workdir, config)
    check_wandb(config.wandb)
    if isinstance(experiment.dataset, data.Described):
        raise UserError("the experiment has no data set, only its description: build it from its config")
    if config.device:
        raise UserError(f"device {config.device} is only described: programs are compiled for it, none can run")
    state = _start(experiment, workdir)
    about = experiment.describe(state)
    with (
        claimed(workdir, config, about, environment()),
        _signals() as received,
        saving(workdir, GOES_ON),
        closing(Checkpoints(workdir)) as checkpoints,
    ):
        _announce(config, about)
        watch = Watch(experiment, workdir)
        rolled_back: int | None = None  # to the checkpoint of this step
        while True:
            last, saved = checkpoints.resume(experiment.whole(state))
            if last:
                state = experiment.executor.place(saved)
                what = "is finished:" if last == experiment.num_steps else "goes on"
                print(f"{workdir} {what} at step {last} of {experiment.num_steps}", flush=True)
            if rolled_back is not None:
                state = with_other_key(state)
            with (
                closing(Recorder(workdir, last, config.seed, _board(workdir, config))) as recorder,
                closing(
                    Profiler(workdir / "profile", last if profile else None, experiment.executor.programs)
                ) as profiler,
                closing(experiment.batches(range(last, experiment.num_steps))) as batches,
                bar_below("training", "step", experiment.num_steps, last) as bar,
            ):
                if config.start_from and not recorder.history:
                    test(0, state, experiment, recorder)
                try:
                    seeds, stopped_by = _loop(
                        experiment, state, last, batches, watch, recorder, checkpoints, received, profiler, bar
                    )
                    break
                except DivergedError as error:
                    before, rolled_back = rolled_back, checkpoints.step("last") or 0
                    if config.on_divergence != "rollback" or before == rolled_back:
                        raise
                    print(f"warning: {error}; back to step {rolled_back}", file=sys.stderr, flush=True)
            state = _start(experiment, workdir)
    return Results(workdir, recorder.history, about, seeds, stopped_by, metrics_of(experiment))


def _board(workdir: Path, config: FrozenConfigDict) -> Board | None:
    return Board(workdir, config) if config.wandb and processes.first() else None


def _start(experiment: Experiment, workdir: Path) -> TrainState:
    """The state before the first step."""
    state, origin = experiment.init(), experiment.config.start_from
    if origin and not has_any(workdir):
        if not processes.alone():
            raise UserError("start_from works in one process: take the first steps there, then go on with several")
        whole = start_from(given_path(origin, "start_from"), experiment, experiment.whole(state))
        state = experiment.executor.place(whole)
    return state


def _loop(
    experiment: Experiment,
    state: TrainState,
    first_step: int,
    batches: Iterator[Any],
    watch: Watch,
    recorder: Recorder,
    checkpoints: Checkpoints,
    received: Sequence[signal.Signals],
    profiler: Profiler,
    bar: Progress,
) -> tuple[Sequence[Blocks], signal.Signals | None]:
    """Steps, log lines, evaluations and checkpoints, until the end or a signal: ``(seeds, stopped by)``.

    Metrics are those of single steps, and the fetch of one step's waits until as many more steps are under
    way as there are stages, so no device idles for them. Divergence is noticed by then, before anything later
    is saved; of several processes, at the next log line.
    """
    examples = experiment.config.batch_size * len(experiment.seeds)
    chrono = Chrono(experiment.num_steps, counted(experiment, examples))
    seeds: Sequence[Blocks] | None = None
    under_way: deque[tuple[int, BlockMetrics]] = deque()

    def look(until: int, *, anyway: bool = False) -> bool:
        """Looks at the steps up to ``until``, logs what is due of them, and says whether there was anything."""
        logged = (step for step, _ in under_way if step % experiment.log_every == 0 or step == experiment.num_steps)
        due = [step for step in logged if step <= until]
        if processes.alone() or due or anyway:
            done = [under_way.popleft() for _ in range(sum(step <= until for step, _ in under_way))]
            watch.look(done, state)
            for step, metrics in done:
                if step in due:
                    _log(step, metrics, experiment, recorder, chrono)
        return bool(due)

    for step, batch in zip(range(first_step, experiment.num_steps), batches, strict=True):
        if step == first_step:
            compiled = cost_of(experiment.executor.programs(state, batch), experiment.examples_of_a_device)
        profiler.before(step, state, batch)
        state, metrics = experiment.executor.step(state, batch)
        done = step + 1
        under_way.append((done, metrics))
        bar.update()
        logged = look(done - len(experiment.stages))
        if not chrono.running:
            jax.block_until_ready(state)
            print(
                f"first step, compilation included, in {chrono.start(done):.1f} s; {compiled.flops / 1e6:,.1f} MFLOP "
                f"per example, {compiled.temporaries / MIB:,.1f} MiB of temporaries",
                flush=True,
            )
        evaluate_now = done % experiment.eval_every == 0 or done == experiment.num_steps
        # Processes have to stop at the same step, so they ask each other, but not at every step.
        stopping = processes.agreed(bool(received)) if processes.alone() or logged else False
        if evaluate_now or stopping:
            look(done, anyway=True)
        if evaluate_now:
            jax.block_until_ready(state)  # what is still under way is training time
            with chrono.paused():
                seeds = test(done, state, experiment, recorder)
                whole = experiment.whole(state)
                recorder.sync()  # a checkpoint must not outlive the lines before it
                checkpoints.save(done, whole, metrics_of(experiment).of_last(seeds))
        if stopping:
            stopped_by = _first(received)
            print(f"{stopped_by.name}: saving step {done} (again to give it up)", flush=True)
            recorder.sync()
            checkpoints.save(done, experiment.whole(state))
            checkpoints.wait()
            print(f"step {done} is saved; the same command goes on from there", flush=True)
            return seeds or (), stopped_by
    if seeds is None:  # there was nothing left to do
        seeds = tested(recorder.history, first_step) or experiment.evaluate(state)
        print(f"test\n{metrics_of(experiment).lines(seeds)}", flush=True)
    return seeds, _first(received) if processes.agreed(bool(received)) else None


def _log(step: int, metrics: BlockMetrics, experiment: Experiment, recorder: Recorder, chrono: Chrono) -> None:
    """One line of training metrics, to the files and the terminal."""
    shown = tuple({name: x for name, x in block.items() if name != "finite"} for block in metrics)
    seeds = experiment.by_seed(shown)
    rate = float(experiment.schedule(step - 1))
    epoch = step / experiment.steps_per_epoch
    recorder.write(step, "train", seeds, epoch=epoch, learning_rate=rate)
    per_second, to_go = chrono.read(step)
    said = metrics_of(experiment)
    recorder.timing(step, f"{said.counted}_per_second", per_second)
    print(
        f"step {step}/{experiment.num_steps}  epoch {epoch:.2f}  {per_second:,.0f} {said.rate}  ETA {to_go}  "
        f"lr {rate:.4g}\n{said.lines(seeds)}",
        flush=True,
    )


def test(step: int, state: TrainState, experiment: Experiment, recorder: Recorder) -> Sequence[Blocks]:
    """Evaluates every exit, for each seed, and writes it to the files and the terminal.

    Returns:
      For each seed, the metrics of each exit.
    """
    seeds = experiment.evaluate(state)
    recorder.write(step, "test", seeds)
    print(f"step {step} test\n{metrics_of(experiment).lines(seeds)}", flush=True)
    return seeds


def _announce(config: FrozenConfigDict, about: Mapping[str, Any]) -> None:
    """What is about to be trained."""
    stages = f", in stages from blocks {about['stages']}" if len(about["stages"]) > 1 else ""
    seeds = f"seeds {config.seed} to {config.seed + config.seeds - 1}" if config.seeds > 1 else f"seed {config.seed}"
    print(
        f"{config.rule.name} on {config.model.name}, {config.dataset}: {size_of(about)}; "
        f"{about['num_steps']} steps of {config.batch_size}{stages}; {seeds}",
        flush=True,
    )


def _first(received: Sequence[signal.Signals]) -> signal.Signals:
    """What stops a run, if it was not another process that received it."""
    return (*received, signal.SIGTERM)[0]


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT, SIGTERM and SIGHUP, to be obeyed between two steps; a second one acts at once.

    A reader of the output that goes away is SIGPIPE; of what else cannot be printed there is only silence.
    """
    received: list[signal.Signals] = []
    old: dict[signal.Signals, Any] = {}

    def handler(number: int, frame: Any) -> None:
        del frame
        received.append(signal.Signals(number))
        for sig, previous in old.items():
            signal.signal(sig, previous)

    def lost(error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            received.append(signal.SIGPIPE)

    if threading.current_thread() is threading.main_thread():
        kinds = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it is
            kinds.append(signal.SIGHUP)
        old = {sig: signal.signal(sig, handler) for sig in kinds}
    try:
        with output_may_be_lost(lost):
            yield received
    finally:
        for sig, previous in old.items():
            signal.signal(sig, previous)
