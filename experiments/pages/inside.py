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
from experiments.training.metrics import IMAGES, exit_errors
from experiments.training.results import by_block, over_time
from experiments.training.trained import Trained
from jaxlocal import diagnostics
from jaxlocal.executors import TrainState
from jaxlocal.objective import Batch


class Looked(NamedTuple):
    """What was seen of a run; errors in percent.

    Attributes:
      steps: at which the test split was evaluated.
      exits: error at every exit at each of them, ``[steps, exits]``; mean over seeds.
      errors: at every exit, of this checkpoint and seed.
      probes: error of a probe of every unit.
      grams: of every unit, on the first test examples, ``[units, n, n]``.
      confusion: at the last exit, ``[k, k]``; None if it predicts no classes.
    """

    steps: Sequence[int]
    exits: np.ndarray
    errors: Sequence[float]
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


def look(workdir: Path, run: Trained, examples: int = 512, probed: int = 5000) -> Looked:
    """Everything that is seen of a run of one seed alone: ``grams`` of so many test ``examples``.

    Probes are fitted to ``probed`` training examples at most.

    Raises:
      UserError: if the run is on a text.
    """
    experiment, state = run.experiment, run.state
    if experiment.task.each:
        raise UserError(f"{workdir} is a run on a text: what is looked at here are classes of images")
    dtype, classes = experiment.dtype, experiment.task.num_classes

    @jax.jit
    def observed(batch: Batch) -> tuple[Any, Any]:
        seen = diagnostics.observe(experiment.blocks, experiment.feed, state, batch, dtype=dtype)
        taken = None if seen.logits[-1] is None else jnp.argmax(seen.logits[-1], axis=1)
        return [diagnostics.pooled(x) for x in seen.units], taken

    @jax.jit
    def grams(batch: Batch) -> Any:
        units = diagnostics.observe(experiment.blocks, experiment.feed, state, batch, dtype=dtype).units
        return [diagnostics.centred_gram(x) for x in units]

    def whole(split: str, most: int) -> tuple[list[jax.Array], jax.Array, jax.Array | None]:
        seen = [(*jax.device_get(observed(batch)), np.asarray(batch.label)) for batch in batches(run, split, most)]
        features = [jnp.asarray(np.concatenate(parts)) for parts in zip(*(x for x, _, _ in seen), strict=True)]
        taken = None if seen[0][1] is None else jnp.asarray(np.concatenate([x for _, x, _ in seen]))
        return features, jnp.asarray(np.concatenate([labels for _, _, labels in seen])), taken

    features, labels, _ = whole("train", probed)
    test, test_labels, taken = whole("test", experiment.dataset.num_test)
    probes = [
        1 - diagnostics.probe_accuracy(diagnostics.fit_probe(x, labels, classes), y, test_labels)
        for x, y in zip(features, test, strict=True)
    ]
    steps, exits = over_time(read_lines(workdir / "metrics.jsonl"), IMAGES.headline)
    return Looked(
        steps=steps,
        exits=exits,
        errors=exit_errors(experiment.evaluate(state)[0]),
        probes=100 * np.array(probes),
        grams=grams(first_batch(run, "test", examples)),
        confusion=None if taken is None else np.asarray(diagnostics.confusion(test_labels, taken, classes)),
    )


def cosines(run: Trained, examples: int = 512) -> np.ndarray:
    """Of each block's local gradient and the end-to-end one, at the checkpoint, on training examples."""
    experiment = run.experiment
    batch = first_batch(run, "train", examples)
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
    return f"{dataset.num_test} images {shape} of {run.experiment.config.dataset}"


def table_of_units(run: Trained, seen: Looked, other: Looked | None, similar: np.ndarray) -> str:
    """Probes of every unit, and which unit of the other run is most like it."""
    rows: list[Sequence[str]] = [("unit", "block", "probe, error %", *(("against", "most alike") if other else ()))]
    block_of = [i for i, block in enumerate(run.experiment.blocks) for _ in block.units]
    for i, (block, error) in enumerate(zip(block_of, seen.probes, strict=True)):
        beside: Sequence[str] = ()
        if other:
            theirs = f"{other.probes[i]:.2f}" if i < len(other.probes) else "-"
            best = int(np.argmax(np.nan_to_num(similar[i])))
            beside = (theirs, f"unit {best}, CKA {similar[i, best]:.2f}")
        rows.append((str(i), str(block), f"{error:.2f}", *beside))
    return aligned(rows)


def table_of_blocks(seen: Looked, alignment: np.ndarray) -> str:
    """The error of every exit, and the gradients' cosines."""
    rows: list[Sequence[str]] = [("block", "exit, error %", "gradient's cosine")]
    errors = by_block(IMAGES.headline, seen.errors, len(alignment))
    for i, (error, cosine) in enumerate(zip(errors, alignment, strict=True)):
        rows.append((str(i), error, f"{cosine:.3f}" if math.isfinite(cosine) else "-"))
    return aligned(rows)
