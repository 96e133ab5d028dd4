"""A typical image of each class."""

import numpy as np
from jaxtyping import Float

from jaxlocal.data.augment import Recipe
from jaxlocal.data.sources import Dataset

ROWS = 1024  # images whose distances are taken at once


def prototypes(dataset: Dataset, treatment: Recipe) -> Float[np.ndarray, "k d"]:
    """Of each class the training image of least median distance to the others of its class (NoProp, section 4).

    Returns:
      ``[k, h w c]``, normalised by a recipe.

    Raises:
      ValueError: if a class has no image.
    """
    mean, std = (np.asarray(x, np.float32) for x in treatment[:2])
    found = []
    for label in range(dataset.num_classes):
        image = dataset.train.image[dataset.train.label == label]
        if not len(image):
            raise ValueError(f"class {label} of {dataset.name} has no training image to be its prototype")
        x = ((image.astype(np.float32) - mean) / std).reshape(len(image), -1)
        square = np.sum(x**2, axis=1)
        medians = [
            np.median(square[i : i + ROWS, None] - 2 * x[i : i + ROWS] @ x.T + square, axis=1)
            for i in range(0, len(x), ROWS)
        ]
        found.append(x[np.argmin(np.concatenate(medians))])
    return np.stack(found)
