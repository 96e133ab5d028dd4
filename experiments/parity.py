"""Does this code compute what the authors' code computes?

.. code-block:: shell

    python -m experiments.parity --golden=tests/golden/bp_resnet32.json

Builds the network and rule that a golden file describes, fills every tensor by its
reference name, runs the forward and local backward pass of every block in float64 on
the CPU and prints one JSON line with the worst relative errors. Exit code 0: all are
below 1e-6; 1: some are not; 2: the file cannot be served.
"""

import json

import jax
from absl import flags

from experiments.app.errors import UserError, user_input
from experiments.app.files import as_json, given_path
from experiments.app.program import run
from experiments.reference.parity import TOLERANCE, compare

_GOLDEN = flags.DEFINE_multi_string("golden", [], "Golden file to compare with; may be given more than once.")


def main() -> int:
    """Compares each golden file."""
    if not _GOLDEN.value:
        raise UserError("no golden file given: use --golden=FILE.json")
    ok = True
    for name in _GOLDEN.value:
        try:
            golden = json.loads(given_path(name, "--golden").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"golden file {name}: {error}") from error
        with user_input(f"golden file {name}"):
            try:
                result = compare(golden)
            except KeyError as error:
                raise ValueError(f"has no field {error}") from error
        passed = all(error < TOLERANCE for key, error in result.items() if key != "tensors")
        ok &= passed
        print(as_json({"file": name, "ok": passed, **result}))
    return 0 if ok else 1


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    run(main)
