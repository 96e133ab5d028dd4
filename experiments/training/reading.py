"""How well a trained language model tells given texts, at every exit, and how it would go on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.app.errors import UserError, user_input
from experiments.recipe.experiment import Experiment
from experiments.training.metrics import metrics_of
from experiments.training.trained import Trained
from jaxlocal import diagnostics
from jaxlocal.executors import TrainState
from jaxlocal.objective import Batch

_LIKELY = 3  # next tokens that are named


def lines(trained: Trained, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each text file, its length, the numbers of every exit, and the likeliest tokens after its end.

    Windows follow each other, as in evaluation; the last one may be shorter. What is next is told from the last tokens
    that the context holds, at the last exit. Of a file that cannot be read the line has the ``error`` in their place.

    Args:
      trained: a language model of one seed.
      names: of the files.

    Raises:
      UserError: if the network's scores are NaN.
    """
    experiment, state = trained.experiment, trained.state
    said, context = metrics_of(experiment), experiment.input_shape[0]
    window = _window(experiment)
    for name in names:
        try:
            tokens, total = read(Path(name), experiment), np.zeros(())
        except UserError as error:
            yield {"text": name, "error": str(error)}
            continue
        for first in range(0, len(tokens) - 1, context):
            sums = window(state, *_padded(tokens[first : first + context + 1], context))[0]
            total = total + np.asarray(sums, float)
        following = np.asarray(window(state, *_padded(np.append(tokens[-context:], 0), context))[1])
        means = total / (len(tokens) - 1)
        if not np.isfinite(means).all():
            raise UserError(f"text {name}: the network's scores are NaN: take a checkpoint from before it diverged")
        exits = [{"loss": loss, "accuracy": accuracy} for loss, accuracy in means.tolist()]
        numbers = {metric.title: metric.at(exits) for metric in said.columns}
        yield {
            "text": name,
            "tokens": len(tokens),
            "exits": [{title: float(f"{x[i]:.5g}") for title, x in numbers.items()} for i in range(len(exits))],
            "next": [[_named(experiment, k), round(float(following[k]), 4)] for k in np.argsort(-following)[:_LIKELY]],
        }


def read(path: Path, experiment: Experiment) -> Int[np.ndarray, "n"]:
    """The tokens of a text file, two at least; of a run on bytes, of any file.

    Raises:
      UserError: if it cannot be read, is not UTF-8, holds what the run knows not, or too little.
    """
    what, text = f"text {path}", experiment.dataset
    unit: str = text.unit  # type: ignore[attr-defined]  # a text has these
    try:
        given: Any = np.frombuffer(path.read_bytes(), np.uint8) if unit == "byte" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    with user_input(what):
        tokens = given.astype(np.int32) if unit == "byte" else text.encode(given)  # type: ignore[attr-defined]
    if len(tokens) < 2:
        raise UserError(f"{what}: {len(tokens)} {unit}s; give two or more, as each is told from those before it")
    return known(tokens, experiment, what)


def known(tokens: Int[np.ndarray, "n"], experiment: Experiment, what: str) -> Int[np.ndarray, "n"]:
    """The tokens themselves, of ``what``.

    Raises:
      UserError: if the network does not know one of them, as a tokenizer may have more.
    """
    if len(strange := tokens[tokens >= experiment.task.num_classes]):
        raise UserError(f"{what}: token {strange[0]} is none of the network's {experiment.task.num_classes}")
    return tokens


def _window(experiment: Experiment) -> Any:
    """What is made of one window: sums of loss and accuracy at each exit, and probabilities behind its last token."""

    @jax.jit
    def found(
        state: TrainState, tokens: Int[Array, "t"], told: Int[Array, "t"], count: Int[Array, ""]
    ) -> tuple[Float[Array, "exits 2"], Float[Array, "k"]]:
        batch = Batch(tokens[None], told[None])
        seen = diagnostics.observe(experiment.blocks, experiment.feed, state, batch, dtype=experiment.dtype)
        exits = [logits[0] for logits in seen.logits if logits is not None]
        counts = jnp.arange(len(tokens)) < count

        def sums(logits: Float[Array, "t k"]) -> Float[Array, "2"]:
            right = jnp.argmax(logits, axis=-1) == told
            each = jnp.stack([experiment.task.loss(logits, told), right.astype(logits.dtype)])
            return jnp.sum(jnp.where(counts, each, 0), axis=1)

        return jnp.stack([sums(logits) for logits in exits]), jax.nn.softmax(exits[-1][count - 1])

    return found


def _padded(tokens: Int[np.ndarray, "n"], context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is read of some tokens, what is told of them, and how many they are: no position sees a later one."""
    whole = np.zeros(context + 1, np.int32)
    whole[: len(tokens)] = tokens
    return whole[:-1], whole[1:], np.array(len(tokens) - 1, np.int32)


def _named(experiment: Experiment, token: int) -> str:
    """The text of a token; its number, where it has none."""
    try:
        return experiment.dataset.decode(np.array([token]))  # type: ignore[attr-defined]
    except ValueError:  # a network may have more tokens than its tokenizer
        return f"token {token}"
