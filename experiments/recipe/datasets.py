"""The data set that a config names."""

import os
from typing import Any

from ml_collections import FrozenConfigDict

from experiments.app.errors import UserError, user_input
from jaxlocal import data

IN_MEMORY = 2**30  # bytes of images that are decoded once, unless the config says otherwise


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
                return _text(config, first, name, data_dir)
            if config.tokenizer:
                raise ValueError(f"tokenizer {config.tokenizer}: {name} is no text: choose {', '.join(data.TEXTS)}")
            return _images(config, name, data_dir)
    except data.MissingDataError as error:
        if data.is_own(name):
            raise UserError(f"{error}: give the place where it is now by --config.data_dir") from error
        raise UserError(
            f"{error}: run `python -m experiments.prepare --dataset={config.dataset}`, or name the TFDS directory "
            "that holds it by --config.data_dir or TFDS_DATA_DIR"
        ) from error
    except (OSError, MemoryError) as error:
        raise UserError(f"data set {name} cannot be read or kept: {error}") from error


def _text(config: FrozenConfigDict, first: Any, name: str, data_dir: str | None) -> data.Input:
    if not hasattr(first, "vocabulary"):
        raise ValueError(f"{name} is a text, which model {config.model.name} does not read: choose gpt")
    tokenizer, kind = os.path.expanduser(config.tokenizer), name.partition(":")[0]
    if data_dir and ":" in name:
        name = f"{kind}:{data_dir}"
    return data.Text(name, first.context, config.eval_examples, first.vocabulary, tokenizer)


def _images(config: FrozenConfigDict, name: str, data_dir: str | None) -> data.Input:
    mean, std = (tuple(map(float, given)) for given in (config.mean, config.std))
    options = {"augment": config.augment, "mean": mean, "std": std}
    of_arrays = name.startswith("arrays:")
    if of_arrays or data.is_small(name):
        dataset = data.arrays(name, data_dir, config.split_seed) if of_arrays else data.load(name, data_dir)
        if config.in_memory == "no":
            raise ValueError(f"{name} is in memory: in_memory='no' is for files of images")
        dataset = data.resized(dataset, config.image_size) if config.image_size else dataset
    else:
        own = data.is_own(name)
        listed = data.listed(name, data_dir, config.split_seed) if own else data.tfds_listed(name, data_dir)
        if config.in_memory == "no" or (config.in_memory == "auto" and not (own and _is_small(listed, config))):
            if config.seeds > 1:
                raise ValueError(
                    f"{name} is streamed, for one seed: seeds {config.seeds} train one by one, or set in_memory='yes'"
                )
            sizes = {"image_size": config.image_size, "workers": config.workers, "test_examples": config.eval_examples}
            return data.Streamed(listed, **sizes, **options)
        dataset = data.in_memory(listed, config.image_size)
    if n := config.eval_examples:  # of files, whose classes follow each other, evenly apart
        chosen = slice(n) if data.is_small(name) else data.evenly(len(dataset.test.label), n)
        dataset = dataset._replace(test=data.Split(*(x[chosen] for x in dataset.test)))
    return data.InMemory(dataset, **options)


def _is_small(listed: data.Listed, config: FrozenConfigDict) -> bool:
    """Whether all images, decoded, take little memory beside what training takes."""
    height, width = listed.sides(config.image_size)
    n = len(listed.train.source) + len(listed.test.source)
    return n * height * width * listed.train.channels <= IN_MEMORY


def _home(name: str) -> str:
    """``text:~/book.txt`` as a shell would have it, had it seen a path."""
    kind, colon, path = name.partition(":")
    return f"{kind}{colon}{os.path.expanduser(path)}"
