"""What the blocks of a trained network learned, in numbers and figures."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.app.errors import UserError
from experiments.app.files import read_lines
from experiments.drawing.tables import aligned
from experiments.training.metrics import metrics_of
from experiments.training.results import by_block, of_seeds, over_time
from experiments.training.trained import Trained
from jaxlocal import diagnostics
from jaxlocal.executors import TrainState
from jaxlocal.objective import Batch

POSITIONS = 16  # of a window of text that count as examples, unless there are too few windows


class Looked(NamedTuple):
    """What was seen of a run, in the numbers that :func:`metrics_of` has for its task.

    Attributes:
      steps: at which the test split was evaluated.
      over_time: the headline number at every exit at each of them, ``[steps, exits]``; mean over seeds.
      exits: the same of this checkpoint and seed.
      probes: of a probe of every unit.
      grams: of every unit, on some test examples, ``[units, n, n]``.
      confusion: of images, at the last exit, ``[k, k]``; None if it predicts no classes.
    """

    steps: Sequence[int]
    over_time: np.ndarray
    exits: Sequence[float]
    probes: np.ndarray
    grams: Any
    confusion: np.ndarray | None


def batches(run: Trained, split: str, most: int) -> Iterator[Batch]:
    """At most so many examples of a split, as evaluation sees them."""
    experiment = run.experiment
    config = experiment.config
    prepare = jax.jit(lambda data: experiment.dataset.prepare(data, run.state.key, train=False))
    if split == "test":
        source = (data for _, data in experiment.dataset.test(experiment.placement, config.eval_batch_size))
    else:
        steps = range(min(experiment.steps_per_epoch, math.ceil(most / config.batch_size)))
        source = experiment.batches(steps)
    with closing(source):
        for data in source:
            batch = jax.tree.map(lambda x, left=most: x[:left], prepare(data))
            yield batch
            most -= len(batch.label)
            if most <= 0:
                return


def first_batch(run: Trained, split: str, size: int) -> Batch:
    """So many examples of a split as one batch."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *batches(run, split, size))


class Seen(NamedTuple):
    """What there is at every unit for some examples: images, or positions of texts.

    Attributes:
      units: features of each, ``[n, d]``.
      labels: ``[n]``.
      taken: of images, the classes that the last exit takes them for, ``[n]``; None if it predicts none.
    """

    units: Sequence[jax.Array]
    labels: jax.Array
    taken: jax.Array | None


def look(workdir: Path, run: Trained, examples: int = 512, probed: int = 5000) -> Looked:
    """Everything that is seen of a run of one seed alone: ``grams`` of so many test ``examples``.

    Probes are fitted to ``probed`` training examples at most. Those of images are tested on the whole test split, those
    of texts, whose examples are positions, on as many as they are fitted to.

    Raises:
      UserError: if a unit puts out nothing for every position of a text.
    """
    experiment, state = run.experiment, run.state
    said, each, classes = metrics_of(experiment), experiment.task.each, experiment.task.num_classes

    @jax.jit
    def grams(batch: Batch) -> Any:
        units = diagnostics.observe(experiment.blocks, experiment.feed, state, batch, dtype=experiment.dtype).units
        return [diagnostics.centred_gram(x) for x in units]

    fitted = seen(run, "train", probed)
    tested = seen(run, "test", probed if each else experiment.dataset.num_test)
    told = [
        diagnostics.probe_accuracy(diagnostics.fit_probe(x, fitted.labels, classes), y, tested.labels)
        for x, y in zip(fitted.units, tested.units, strict=True)
    ]
    steps, past = over_time(read_lines(workdir / "metrics.jsonl"), said.headline)
    if each:
        similar = [diagnostics.centred_gram(x) for x in seen(run, "test", examples).units]
    else:
        similar = grams(first_batch(run, "test", examples))  # of all pixels, of which probes see means
    taken = tested.taken
    return Looked(
        steps=steps,
        over_time=past,
        exits=list(of_seeds(said.headline, experiment.evaluate(state))[0]),
        probes=np.array([said.probe.at([{"accuracy": float(accuracy)}])[0] for accuracy in told]),
        grams=similar,
        confusion=None if taken is None else np.asarray(diagnostics.confusion(tested.labels, taken, classes)),
    )


def seen(run: Trained, split: str, most: int) -> Seen:
    """The units' outputs for at most so many examples of a split.

    Of texts, examples are positions: :data:`POSITIONS` of each window, or more where there are too few windows.

    Raises:
      UserError: if a unit puts out nothing for every position of a text.
    """
    experiment, state = run.experiment, run.state
    each, context = experiment.task.each, experiment.input_shape[0]
    there = experiment.dataset.num_test if split == "test" else experiment.dataset.num_train
    windows = min(there, math.ceil(most / min(POSITIONS, context))) if each else most
    per_window = min(context, math.ceil(most / windows)) if each else 0

    @jax.jit
    def observed(batch: Batch, first: int) -> Seen:
        found = diagnostics.observe(experiment.blocks, experiment.feed, state, batch, dtype=experiment.dtype)
        if not each:
            taken = None if found.logits[-1] is None else jnp.argmax(found.logits[-1], axis=1)
            return Seen([diagnostics.pooled(x) for x in found.units], batch.label, taken)
        for i, x in enumerate(found.units):
            if x.shape[:2] != batch.label.shape:
                raise UserError(f"unit {i} puts out {list(x.shape)}: nothing for each of {context} positions")
        at = diagnostics.drawn_positions(jax.random.key(0), first, len(batch.label), context, per_window)
        units = [diagnostics.pooled(diagnostics.at_positions(x, at)) for x in found.units]
        return Seen(units, diagnostics.at_positions(batch.label, at), None)

    parts, first = [], 0
    for batch in batches(run, split, windows):
        parts.append(jax.device_get(observed(batch, first)))
        first += len(batch.label)
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:most], *parts)


def cosines(run: Trained, examples: int = 512) -> np.ndarray:
    """Of each block's local gradient and the end-to-end one, at the checkpoint, on training examples.

    Of texts, on as many whole windows as have so many positions.
    """
    experiment = run.experiment
    positions = experiment.input_shape[0] if experiment.task.each else 1
    batch = first_batch(run, "train", math.ceil(examples / positions))
    dtype, loss = experiment.dtype, experiment.task.loss

    @jax.jit
    def found(state: TrainState, batch: Batch) -> jax.Array:
        return diagnostics.alignment(experiment.blocks, experiment.feed, state, batch, dtype=dtype, loss=loss)

    return np.asarray(found(run.state, batch))


def similarities(first: Looked, second: Looked) -> np.ndarray:
    """CKA of every unit of one run with every unit of another."""
    return np.array([[diagnostics.cka(a, b) for b in second.grams] for a in first.grams])


def rounded(x: Any) -> Any:
    """For JSON: lists, five digits, and null for what is no number."""
    if isinstance(x, np.ndarray | list | tuple):
        return [rounded(value) for value in x]
    if isinstance(x, float | np.floating):
        return float(f"{x:.5g}") if math.isfinite(x) else None
    return int(x) if isinstance(x, np.integer) else x


def examples_of(run: Trained) -> str:
    """What a run was tested on, in words."""
    dataset = run.experiment.dataset
    shape = "x".join(map(str, run.experiment.input_shape))
    unit = getattr(dataset, "unit", None)  # a text has one
    examples = f"windows of {shape} {unit}s" if unit else f"images {shape}"
    return f"{dataset.num_test} {examples} of {run.experiment.config.dataset}"


def table_of_units(run: Trained, seen: Looked, other: Looked | None, similar: np.ndarray) -> str:
    """Probes of every unit, and which unit of the other run is most like it."""
    probe = metrics_of(run.experiment).probe
    header = ("unit", "block", f"probe, {probe.title}", *(("against", "most alike") if other else ()))
    rows: list[Sequence[str]] = [header]
    block_of = [i for i, block in enumerate(run.experiment.blocks) for _ in block.units]
    for i, (block, value) in enumerate(zip(block_of, seen.probes, strict=True)):
        beside: Sequence[str] = ()
        if other:
            theirs = probe.said(other.probes[i]) if i < len(other.probes) else "-"
            best = int(np.argmax(np.nan_to_num(similar[i])))
            beside = (theirs, f"unit {best}, CKA {similar[i, best]:.2f}")
        rows.append((str(i), str(block), probe.said(value), *beside))
    return aligned(rows)


def table_of_blocks(run: Trained, seen: Looked, alignment: np.ndarray) -> str:
    """The headline number of every exit, and the gradients' cosines."""
    headline = metrics_of(run.experiment).headline
    rows: list[Sequence[str]] = [("block", f"exit, {headline.title}", "gradient's cosine")]
    exits = by_block(headline, seen.exits, len(alignment))
    for i, (exit, cosine) in enumerate(zip(exits, alignment, strict=True)):
        rows.append((str(i), exit, f"{cosine:.3f}" if math.isfinite(cosine) else "-"))
    return aligned(rows)
