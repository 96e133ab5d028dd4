r"""What the blocks of a trained network learned: pictures and numbers, into ``WORKDIR/analysis``.

.. code-block:: shell

    python -m experiments.analyze --workdir=/tmp/digits --against=/tmp/backprop

``docs/looking.md`` says what each picture shows; the numbers of all are in ``analysis.json``.
"""

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.app.errors import UserError
from experiments.app.files import given_path, saving, write_json
from experiments.app.program import data_dir_flag, required_path, run
from experiments.cost.compiled import block_costs
from experiments.drawing import figures
from experiments.pages.inside import cosines, examples_of, look, rounded, similarities, table_of_blocks, table_of_units
from experiments.training.metrics import metrics_of
from experiments.training.trained import restore
from jaxlocal import diagnostics
from jaxlocal.executors import MIB

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
_AGAINST = flags.DEFINE_string("against", None, "Another run on the same data, as one of backprop.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint of either run.")
_EXAMPLES = flags.DEFINE_integer(
    "examples",
    512,
    "Test examples (of texts, positions) that representations are compared on, and training examples of a gradient.",
    2,
)
_PROBED = flags.DEFINE_integer(
    "probed", 5000, "Training examples that probes are fitted to, at most; of texts, positions.", lower_bound=2
)
_DATA_DIR = data_dir_flag()


def main() -> None:
    """Looks at the run, and at the one that it is held against; writes pictures and numbers."""
    workdir = required_path(_WORKDIR, "the directory of the run to analyze")
    run_ = restore(workdir, _CHECKPOINT.value).with_data(_DATA_DIR.value).one_seed()
    against = given_path(_AGAINST.value, "--against") if _AGAINST.value else None
    other = restore(against, _CHECKPOINT.value).with_data(_DATA_DIR.value).one_seed() if against else None
    if other and examples_of(other) != examples_of(run_):
        raise UserError(
            f"--against={_AGAINST.value} was tested on {examples_of(other)}, {workdir} on {examples_of(run_)}: "
            "representations are compared on the same examples"
        )
    print(
        f"{workdir} at step {run_.step} ({_CHECKPOINT.value} checkpoint), seed {run_.experiment.config.seed}",
        flush=True,
    )
    counts = _EXAMPLES.value, _PROBED.value
    seen = look(workdir, run_, *counts)
    seen_other = look(against, other, *counts) if against and other else None
    alignment = cosines(run_, _EXAMPLES.value)
    temporaries = [cost.temporaries / MIB for cost in block_costs(run_.experiment)]
    name, other_name = (of.experiment.config.rule.name for of in (run_, other or run_))
    if other and name == other_name:
        name, other_name = str(workdir), _AGAINST.value
    similar = similarities(seen, seen_other or seen)
    said = metrics_of(run_.experiment)

    numbers = {
        "workdir": str(workdir),
        "against": _AGAINST.value,
        "step": run_.step,
        "checkpoint": _CHECKPOINT.value,
        "seed": run_.experiment.config.seed,
        "examples": len(seen.grams[0]),
        "steps": seen.steps,
        "exits_are": said.headline.title,
        "exits_over_time": seen.over_time,
        "exits": seen.exits,
        "probes_are": said.probe.title,
        "probes": seen.probes,
        "probes_against": None if seen_other is None else seen_other.probes,
        "gradient_cosines": alignment,
        "cka": similar,
        "temporaries_mib": temporaries,
    }
    found = {
        "exits": figures.exits(seen.steps, seen.over_time, said.axis(), log=said.log),
        "probes": figures.lines(
            {
                label: (range(len(x.probes)), x.probes)
                for label, x in ((name, seen), (other_name, seen_other))
                if x is not None
            },
            "unit",
            said.probe_axis,
            marker="o",
        ),
        "gradients": figures.bars(alignment, "block", "cosine, local and end-to-end gradient"),
        "memory": figures.bars(temporaries, "block, in the order of a step", "temporaries of its update (MiB)"),
        "cka": figures.matrix(similar, f"unit, {other_name}", f"unit, {name}", "linear CKA"),
    }
    if seen.confusion is not None:
        errors = 100 * np.asarray(diagnostics.errors_by_class(jnp.asarray(seen.confusion)))
        names = run_.experiment.dataset.classes
        numbers |= {"confusion": seen.confusion, "class_errors": errors, "classes": names}
        off = seen.confusion * (1 - np.eye(len(seen.confusion), dtype=int))
        found["confusion"] = figures.matrix(
            off.astype(float),
            "taken for",
            "class",
            "wrong, test examples",
            form=".0f",
            most=max(1, off.max()),
            names=names,
        )
    directory = workdir / "analysis"
    with saving(directory):
        directory.mkdir(exist_ok=True)
        for what, figure in found.items():
            figures.save(figure, directory / what)
        write_json(directory / "analysis.json", {key: rounded(value) for key, value in numbers.items()})
    print(f"\n{table_of_units(run_, seen, seen_other, similar)}\n\n{table_of_blocks(run_, seen, alignment)}")
    print(f"\npictures and analysis.json: {directory}")


if __name__ == "__main__":
    run(main)
