r"""What the blocks of a trained network learned: pictures and numbers, into ``WORKDIR/analysis``.

.. code-block:: shell

    python -m experiments.analyze --workdir=/tmp/digits --against=/tmp/backprop

- ``exits``: test error at every exit, over the steps of training.
- ``probes``: test error of a linear probe of every unit.
- ``gradients``: the cosine between each block's local gradient and the end-to-end gradient of the same units.
- ``confusion``: which classes the last exit takes for which.
- ``memory``: what each block's update takes, in the order of a step.
- ``cka``: how alike the units of both runs, or of this run among themselves, represent the test examples.

Each is a ``.png`` and an ``.svg``; the numbers of all are in ``analysis.json``.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import pictures
from experiments.build import DTYPES, evaluate, loss_of
from experiments.cli import UserError, run, saving
from experiments.cost import MIB
from experiments.planning import block_costs
from experiments.record import read_history, write_json
from experiments.summary import aligned, errors_by_block, errors_over_time, exit_errors
from experiments.trained import Trained, one_seed, restore
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
    experiment, config = run.experiment, run.config
    prepare = jax.jit(lambda data: experiment.dataset.prepare(data, run.state.key, train=False))
    if split == "test":
        source = (data for _, data in experiment.dataset.test(experiment.placement, config.eval_batch_size))
    else:
        steps = range(min(experiment.steps_per_epoch, math.ceil(most / config.batch_size)))
        source = experiment.batches(config, steps)
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
    """Everything that is seen of a run alone.

    Args:
      workdir: of the run.
      run: of one seed.
      examples: of the test split, that ``grams`` are of.
      probed: training examples that probes are fitted to, at most.
    """
    experiment, state = run.experiment, run.state
    dtype, classes = DTYPES[run.config.dtype], experiment.dataset.task.num_classes

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
    steps, exits = errors_over_time(read_history(workdir / "metrics.jsonl"))
    return Looked(
        steps=steps,
        exits=exits,
        errors=exit_errors(evaluate(experiment, state, run.config)[0]),
        probes=100 * np.array(probes),
        grams=grams(first_batch(run, "test", examples)),
        confusion=None if taken is None else np.asarray(diagnostics.confusion(test_labels, taken, classes)),
    )


def cosines(run: Trained, examples: int = 512) -> np.ndarray:
    """Of each block's local gradient and the end-to-end one, at the checkpoint, on training examples."""
    experiment = run.experiment
    batch = first_batch(run, "train", examples)
    dtype, loss = DTYPES[run.config.dtype], loss_of(run.config)

    @jax.jit
    def found(state: TrainState, batch: Batch) -> jax.Array:
        return diagnostics.alignment(experiment.blocks, experiment.feed, state, batch, dtype=dtype, loss=loss)

    return np.asarray(found(run.state, batch))


def similarities(first: Looked, second: Looked) -> np.ndarray:
    """CKA of every unit of one run with every unit of another."""
    return np.array([[diagnostics.cka(a, b) for b in second.grams] for a in first.grams])


def _numbers(x: Any) -> Any:
    """For JSON: lists, five digits, and null for what is no number."""
    if isinstance(x, np.ndarray | list | tuple):
        return [_numbers(value) for value in x]
    if isinstance(x, float | np.floating):
        return float(f"{x:.5g}") if math.isfinite(x) else None
    return int(x) if isinstance(x, np.integer) else x


def _examples(run: Trained) -> str:
    """What a run was tested on, in words."""
    dataset = run.experiment.dataset
    return f"{dataset.num_test} images {'x'.join(map(str, dataset.example(1).input.shape[1:]))} of {run.config.dataset}"


def main(argv: Sequence[str]) -> None:
    """Looks at the run, and at the one that it is held against; writes pictures and numbers."""
    del argv
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: the directory of the run to analyze")
    workdir = Path(_WORKDIR.value)
    run_ = one_seed(restore(workdir, _CHECKPOINT.value))
    other = one_seed(restore(Path(_AGAINST.value), _CHECKPOINT.value)) if _AGAINST.value else None
    if other and _examples(other) != _examples(run_):
        raise UserError(
            f"--against={_AGAINST.value} was tested on {_examples(other)}, {workdir} on {_examples(run_)}: "
            "representations are compared on the same examples"
        )
    print(f"{workdir} at step {run_.step} ({_CHECKPOINT.value} checkpoint), seed {run_.config.seed}", flush=True)
    counts = _EXAMPLES.value, _PROBED.value
    seen = look(workdir, run_, *counts)
    seen_other = look(Path(str(_AGAINST.value)), other, *counts) if other else None
    alignment = cosines(run_, _EXAMPLES.value)
    temporaries = [cost.temporaries / MIB for cost in block_costs(run_.experiment, run_.config)]
    name, other_name = run_.config.rule.name, other.config.rule.name if other else run_.config.rule.name
    if other and name == other_name:
        name, other_name = str(workdir), _AGAINST.value
    similar = similarities(seen, seen_other or seen)

    numbers = {
        "workdir": str(workdir),
        "against": _AGAINST.value,
        "step": run_.step,
        "checkpoint": _CHECKPOINT.value,
        "seed": run_.config.seed,
        "examples": len(seen.grams[0]),
        "steps": seen.steps,
        "exit_errors": seen.exits,
        "errors": seen.errors,
        "probe_errors": seen.probes,
        "probe_errors_against": None if seen_other is None else seen_other.probes,
        "gradient_cosines": alignment,
        "cka": similar,
        "temporaries_mib": temporaries,
    }
    found = {
        "exits": pictures.exits(seen.steps, seen.exits),
        "probes": pictures.lines(
            {
                label: (range(len(x.probes)), x.probes)
                for label, x in ((name, seen), (other_name, seen_other))
                if x is not None
            },
            "unit",
            "test error of a linear probe (%)",
            marker="o",
        ),
        "gradients": pictures.bars(alignment, "block", "cosine, local and end-to-end gradient"),
        "memory": pictures.bars(temporaries, "block, in the order of a step", "temporaries of its update (MiB)"),
        "cka": pictures.matrix(similar, f"unit, {other_name}", f"unit, {name}", "linear CKA"),
    }
    if seen.confusion is not None:
        errors = 100 * np.asarray(diagnostics.errors_by_class(jnp.asarray(seen.confusion)))
        numbers |= {"confusion": seen.confusion, "class_errors": errors}
        off = seen.confusion * (1 - np.eye(len(seen.confusion), dtype=int))
        found["confusion"] = pictures.matrix(
            off.astype(float), "taken for", "class", "wrong, test examples", form=".0f", most=max(1, off.max())
        )
    directory = workdir / "analysis"
    with saving(directory):
        directory.mkdir(exist_ok=True)
        for what, figure in found.items():
            pictures.save(figure, directory / what)
        write_json(directory / "analysis.json", {key: _numbers(value) for key, value in numbers.items()})
    print(f"\n{table_of_units(run_, seen, seen_other, similar)}\n\n{table_of_blocks(seen, alignment)}")
    print(f"\npictures and analysis.json: {directory}")


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
    errors = errors_by_block(seen.errors, len(alignment))
    for i, (error, cosine) in enumerate(zip(errors, alignment, strict=True)):
        rows.append((str(i), error, f"{cosine:.3f}" if math.isfinite(cosine) else "-"))
    return aligned(rows)


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
    _AGAINST = flags.DEFINE_string("against", None, "Another run on the same data, as one of backprop.")
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint of either run.")
    _EXAMPLES = flags.DEFINE_integer(
        "examples", 512, "Test examples that representations are compared on, and training examples of a gradient.", 2
    )
    _PROBED = flags.DEFINE_integer(
        "probed", 5000, "Training examples that probes are fitted to, at most.", lower_bound=2
    )
    run(main)
