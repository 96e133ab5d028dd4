"""Which classes are taken for which."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def confusion(
    labels: Int[Array, "n"], predictions: Int[Array, "n"], num_classes: int
) -> Int[Array, "{num_classes} {num_classes}"]:
    """How many examples of each class (row) were taken for each class (column)."""
    pairs = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    return jnp.bincount(pairs, length=num_classes**2).reshape(num_classes, num_classes)


def errors_by_class(counts: Int[Array, "k k"]) -> Float[Array, "k"]:
    """Of each class of a :func:`confusion`, the fraction that was taken for another; NaN for one without examples."""
    total = jnp.sum(counts, axis=1).astype(jnp.float32)
    return 1 - jnp.diagonal(counts).astype(jnp.float32) / jnp.where(total > 0, total, jnp.nan)
