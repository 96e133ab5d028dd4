"""The text that a trained language model writes."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from experiments.app.errors import UserError, user_input
from experiments.training.reading import known
from experiments.training.trained import Trained
from jaxlocal.sampling import continued, sampler


def write(
    trained: Trained, prompt: str, length: int, *, exit_: int | None, temperature: float, top_k: int, seed: int
) -> Iterator[str]:
    """What follows a prompt, piece by piece as it is drawn.

    Args:
      trained: a language model of one seed.
      prompt: one token at least.
      length: tokens to write.
      exit_: from 1; None for the last one.
      temperature: as :func:`jaxlocal.sampling.sampler` has it.
      top_k: likewise.
      seed: of what is drawn.

    Raises:
      UserError: if the run is none of a language model, or one of the others is out of range.
    """
    experiment, _, state = trained
    if not experiment.task.each:
        raise UserError(f"a run on {experiment.config.dataset} writes no text: give one of a language model")
    text, exits = experiment.dataset, len(experiment.blocks)
    exit_ = exits if exit_ is None else exit_
    if not 1 <= exit_ <= exits:
        raise UserError(f"exit {exit_}: choose 1 to {exits}, as many as the run has")
    with user_input("sampling"):
        draw = sampler(experiment.task.num_classes, temperature, top_k)
    with user_input("prompt"):
        given = known(text.encode(prompt), experiment, "prompt")  # type: ignore[attr-defined]  # a text has it
        tokens = continued(
            experiment.blocks[:exit_],
            experiment.feed,
            [block.variables for block in state.blocks[:exit_]],
            given,
            jax.random.key(seed),
            draw=draw,
            context=experiment.input_shape[0],
            dtype=experiment.dtype,
        )
    return pieces(itertools.islice(tokens, length), text.decode)  # type: ignore[attr-defined]


def pieces(tokens: Iterable[int], decode: Callable[[np.ndarray], str]) -> Iterator[str]:
    """The text of tokens as they come; a character that is several of them, when they are there.

    Raises:
      UserError: if there is no next token, or no text of one.
    """
    waiting: list[int] = []
    with user_input("text"):
        for token in tokens:
            waiting.append(token)
            piece = decode(np.array(waiting))
            if not piece.endswith("\N{REPLACEMENT CHARACTER}") or len(waiting) == 4:  # bytes of UTF-8, at most
                yield piece
                waiting = []
        if waiting:
            yield decode(np.array(waiting))
