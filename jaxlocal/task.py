"""What a network is asked for."""

from typing import NamedTuple

from jaxlocal.losses import Loss, cross_entropy


class Task(NamedTuple):
    """Which answers there are, and how they are judged.

    Attributes:
      num_classes: k, classes; or tokens of a vocabulary.
      loss: ``(scores [b, ..., k], labels [b, ...]) -> [b]``.
      each: whether every position answers: labels are ``[b, t]``.
    """

    num_classes: int
    loss: Loss = cross_entropy
    each: bool = False

    def once(self, who: str) -> int:
        """The number of classes, for a rule or an output that knows no positions.

        Raises:
          ValueError: if every position answers.
        """
        if self.each:
            raise ValueError(f"{who} gives one answer an example; the task asks for one at every position")
        return self.num_classes
