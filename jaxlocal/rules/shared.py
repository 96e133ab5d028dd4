r"""Shared unembedding: heads of another rule that read the last block's table.

On a large vocabulary the unembeddings of auxiliary heads, their gradients and their moments take more memory
than isolated blocks save. Here such a head has no table to train. It reads an average of the last block's, which
follows it after each step:

.. math:: W_l \leftarrow m W_l + (1 - m) W_K

so no gradient passes a cut, and what a block learns is to be read as the network's end reads.
"""

import jax.numpy as jnp

from jaxlocal.network import Network
from jaxlocal.objective import no_sync
from jaxlocal.rule import LocalRule, Rule
from jaxlocal.task import Task
from jaxlocal.unembedding import following


def shared(rule: Rule, decay: float = 0.0, half: bool = False) -> Rule:
    """The heads of ``rule`` without unembeddings of their own.

    Args:
      rule: whose heads end as the network does, in a norm and an unembedding; not one that follows other blocks.
      decay: :math:`m`, in [0, 1); with 0 heads read the last block's table as it was a step ago.
      half: keep what they read in bfloat16, in which a step in bfloat16 reads it anyway.

    Raises:
      ValueError: if the decay is out of range, or not 0 and the table is kept in bfloat16, which would round its small
        changes away; if the rule follows other blocks, or its network ends otherwise.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"shared: decay {decay} given; choose 0 or more, below 1")
    if half and decay:
        raise ValueError(f"shared: half with decay {decay}: bfloat16 would round an average's changes away; choose one")
    dtype = jnp.bfloat16 if half else None

    def wrapped(network: Network, task: Task) -> tuple[Network, LocalRule]:
        cut, local = rule(network, task)
        if not hasattr(network.units[-1], "norms"):
            raise ValueError("shared: heads read the table that a transformer ends in; this network ends otherwise")
        *hidden, output = local.objectives
        if any(objective.sync is not no_sync for objective in hidden):
            raise ValueError("shared cannot go around a rule that follows other blocks")
        return cut, local._replace(objectives=(*(following(objective, decay, dtype) for objective in hidden), output))

    return wrapped
