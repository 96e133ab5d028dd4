"""The data set that a config names."""

import os
from typing import Any

from ml_collections import FrozenConfigDict

from experiments.app.errors import UserError, user_input
from jaxlocal import data


def load(config: FrozenConfigDict, first: Any) -> data.Input:
    """The config's data set: in memory, streamed, or a text.

    Args:
      config: that names it.
      first: unit of the network, which says how much of a text it reads, and how many tokens it knows.

    Raises:
      UserError: if there is none of that name, or it is missing or damaged.
    """
    name, data_dir = _home(config.dataset), os.path.expanduser(config.data_dir) or None
    try:
        with user_input("dataset"):
            if data.is_text(name):
                if not hasattr(first, "vocabulary"):
                    raise ValueError(f"{name} is a text, which model {config.model.name} does not read: choose gpt")
                return data.Text(
                    name, first.context, config.eval_examples, first.vocabulary, os.path.expanduser(config.tokenizer)
                )
            if config.tokenizer:
                raise ValueError(f"tokenizer {config.tokenizer}: {name} is no text: choose {', '.join(data.TEXTS)}")
            if data.is_small(name):
                dataset = data.load(name, data_dir)
            else:
                options = {"image_size": config.image_size, "workers": config.workers}
                streamed_set = data.Streamed(name, data_dir, test_examples=config.eval_examples, **options)
                if not config.augment:
                    raise ValueError(f"{name} is streamed, with crops of its own: augment=False is for sets in memory")
                if config.seeds > 1:
                    raise ValueError(f"{name} is streamed, for one seed: seeds {config.seeds} train one by one")
                return streamed_set
    except data.MissingDataError as error:
        raise UserError(
            f"{error}: run `python -m experiments.prepare --dataset={config.dataset}`, or name the TFDS directory "
            "that holds it by --config.data_dir or TFDS_DATA_DIR"
        ) from error
    except (OSError, MemoryError) as error:
        raise UserError(f"data set {name} cannot be read or kept: {error}") from error
    if config.eval_examples:
        dataset = dataset._replace(test=data.Split(*(x[: config.eval_examples] for x in dataset.test)))
    with user_input("dataset"):
        return data.InMemory(dataset, augment=config.augment)


def _home(name: str) -> str:
    """``text:~/book.txt`` as a shell would have it, had it seen a path."""
    kind, colon, path = name.partition(":")
    return f"{kind}{colon}{os.path.expanduser(path)}"
