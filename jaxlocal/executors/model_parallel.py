"""Backprop with its units on several devices: what block parallelism is measured against.

With one microbatch a device waits until the gradient of its output comes back (naive model parallelism); with more,
the forward passes of one update follow each other through the stages, then the backward passes (GPipe, Huang et al.,
2019, section 2.3, with activations kept rather than recomputed).
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlocal.block import Block, BlockState
from jaxlocal.executors import OneDevice, Placement
from jaxlocal.executors.data_parallel import ONE_DEVICE, is_here
from jaxlocal.executors.link import Link
from jaxlocal.objective import Batch
from jaxlocal.variables import abstract, apply_module, merge, nbytes, nest, pick, split


class ModelParallel:
    """One block's update, in stages of units.

    Args:
      block: the whole network under backprop.
      optimizer: of every stage.
      placements: the device of each stage.
      starts: the first unit of each stage but stage 0.
      microbatches: that a batch is split into.
      call: ``(what, stage, program, *args)`` runs a program of a stage.
    """

    def __init__(
        self,
        block: Block,
        optimizer: optax.GradientTransformation,
        placements: Sequence[Placement],
        starts: Sequence[int],
        microbatches: int = 1,
        call: Callable[..., Any] = lambda what, stage, program, *args: program(*args),
    ) -> None:
        self._block, self._optimizer, self._microbatches = block, optimizer, microbatches
        self._placements, self._call = placements, call
        self._bounds = list(pairwise((0, *starts, len(block.units))))
        self._here = [is_here(placement) for placement in placements]
        self._last = len(placements) - 1
        self._onward = [Link(a, b) for a, b in pairwise(placements)]
        self._back = [Link(b, a) for a, b in pairwise(placements)]

        def compiled(f: Callable[..., Any]) -> Any:
            return ONE_DEVICE.program(f, None, None)

        self._forward = [compiled(functools.partial(self._forward_of, s)) for s in range(len(placements))]
        self._backward = compiled(lambda vjp, gradient: vjp(gradient))
        self._update = compiled(self._update_of)
        self._add = jax.jit(lambda *trees: jax.tree.map(jnp.add, *trees))
        self.outputs: list[Any] = []  # shapes of what the stages put out

    def init(self, state: BlockState, batch: Batch) -> tuple[list[Any], list[Any]]:
        """Puts a state and a batch where they belong: ``(states of the stages, microbatches)``."""
        states, shape = [], jax.tree.map(lambda x: abstract(x[: len(x) // self._microbatches]), batch)
        carry: Any = shape.input
        self.outputs = []
        for s, (placement, (first, end)) in enumerate(zip(self._placements, self._bounds, strict=True)):
            names = [f"unit_{i}" for i in range(first, end)] + ["head"] * (s == self._last)
            variables = nest(**{name: pick(state.variables, name) for name in names})
            params, rest = split(variables)
            carry = jax.eval_shape(self._forward[s], params, rest, carry, shape)[0]
            self.outputs.append(carry)
            states.append(placement.replicate((params, rest, self._optimizer.init(params))))
        parts = [jax.tree.map(lambda x, m=m: x[m :: self._microbatches], batch) for m in range(self._microbatches)]
        ends = self._placements[0], self._placements[-1]
        return states, [(ends[0].replicate(part.input), ends[1].replicate(part)) for part in parts]

    def step(self, states: list[Any], microbatches: Sequence[Any]) -> tuple[list[Any], Any]:
        """One update: ``(states, loss of the last microbatch)``."""
        states, loss = list(states), None
        vjps: dict[tuple[int, int], Any] = {}
        gradients: list[Any] = [None] * len(states)
        for m, (carry, batch) in enumerate(microbatches):
            for s, (params, rest, opt_state) in enumerate(states):
                carry = self._onward[s - 1](carry, None) if s else carry
                if self._here[s]:
                    carry, vjps[s, m], mutated = self._call("forward", s, self._forward[s], params, rest, carry, batch)
                    states[s] = params, merge(rest, mutated), opt_state
                else:
                    carry = self.outputs[s]
            loss = carry
        for m in reversed(range(len(microbatches))):
            gradient = self._placements[-1].replicate(jnp.asarray(1 / len(microbatches)))
            for s in reversed(range(len(states))):
                gradient = self._back[s](gradient, None) if s < self._last else gradient
                if self._here[s]:
                    own, *gradient = self._call("backward", s, self._backward, vjps.pop((s, m)), gradient)
                    gradients[s] = own if gradients[s] is None else self._add(gradients[s], own)
                    gradient = gradient[0] if s else None
                elif s:
                    gradient = self.outputs[s - 1]
        for s, (params, rest, opt_state) in enumerate(states):
            if self._here[s]:
                params, opt_state = self._call("update", s, self._update, gradients[s], params, opt_state)
                states[s] = params, rest, opt_state
        return states, loss

    def _forward_of(self, stage: int, params: Any, rest: Any, carry: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """``(output, its pullback, new statistics)``; the pullback of stage 0 leaves the images out."""

        def run(params: Any, carry: Any) -> tuple[Any, Any]:
            variables, mutated = {"params": params, **rest}, {}
            key = jax.random.key(0)  # no unit of backprop's networks draws
            for i in range(*self._bounds[stage]):
                unit = self._block.units[i]
                carry, mutated[f"unit_{i}"] = apply_module(unit, pick(variables, f"unit_{i}"), carry, key, train=True)
            if stage < self._last:
                return carry, nest(**mutated)
            out = self._block.objective.apply(pick(variables, "head"), carry, batch, key, train=True)
            return out.loss, nest(**mutated, head=out.mutated)

        if stage == 0:
            return jax.vjp(lambda params: run(params, carry), params, has_aux=True)
        return jax.vjp(run, params, carry, has_aux=True)

    def _update_of(self, gradient: Any, params: Any, opt_state: Any) -> tuple[Any, Any]:
        updates, opt_state = self._optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state


class Units(NamedTuple):
    """What each unit of a network takes on one device under backprop.

    Attributes:
      forward: seconds.
      backward: seconds, its update included.
      outputs: bytes that it puts out.
      parameters: bytes.
    """

    forward: list[float]
    backward: list[float]
    outputs: list[int]
    parameters: list[int]


def measure_units(
    block: Block, optimizer: optax.GradientTransformation, state: BlockState, batch: Batch, *, rounds: int = 4
) -> Units:
    """Runs a few updates unit by unit; of the times the least counts."""
    n = len(block.units)
    seconds: defaultdict[tuple[str, int], list[float]] = defaultdict(list)

    def timed(what: str, stage: int, program: Any, *args: Any) -> Any:
        jax.block_until_ready(args)
        began = time.perf_counter()
        out = jax.block_until_ready(program(*args))
        seconds[what, stage].append(time.perf_counter() - began)
        return out

    stages = ModelParallel(block, optimizer, [OneDevice()] * n, range(1, n), call=timed)
    states, parts = stages.init(state, batch)
    for _ in range(rounds):
        states, _ = stages.step(states, parts)
    least = {what: min(taken[1:]) for what, taken in seconds.items()}
    return Units(
        [least["forward", s] for s in range(n)],
        [least["backward", s] + least["update", s] for s in range(n)],
        [nbytes(output) for output in stages.outputs],
        [nbytes(params) for params, _, _ in states],
    )
