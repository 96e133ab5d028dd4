r"""Text that a trained language model writes, at any of its exits.

.. code-block:: shell

    python -m experiments.generate --workdir=/tmp/shakespeare --prompt=ROMEO: --temperature=0.8 --length=200

It comes as it is drawn, behind the prompt. Each token is drawn given as many before it as the context holds. Until the
text outgrows that, what was read is kept in a cache; from then on the context is read anew for each token.
"""

import itertools

from absl import flags

from experiments.app.program import required, required_path, run
from experiments.training.trained import restore
from experiments.training.writing import write

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
_PROMPT = flags.DEFINE_string("prompt", None, "What the text begins with.")
_EXIT = flags.DEFINE_integer("exit", None, "Which exit is asked, from 1; the last one, if none is given.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "The lower, the likelier what is drawn; 0: the likeliest token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "How many of the likeliest tokens to draw from; 0 for all.")
_LENGTH = flags.DEFINE_integer("length", 500, "Tokens to write.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn.", lower_bound=0, upper_bound=2**32 - 1)


def main() -> None:
    """Prints the prompt and what follows."""
    workdir = required_path(_WORKDIR, "the directory of the run")
    prompt = required(_PROMPT, "what the text begins with, one character at least")
    trained = restore(workdir, _CHECKPOINT.value).one_seed()
    text = write(
        trained,
        prompt,
        _LENGTH.value,
        exit_=_EXIT.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        seed=_SEED.value,
    )
    for piece in itertools.chain([prompt], text, ["\n"]):
        print(piece, end="", flush=True)


if __name__ == "__main__":
    run(main)
