"""Consecutive blocks on devices of their own, each at work on another batch: what backprop cannot do.

Blocks are grouped into *stages*, one for each placement. Activations flow forward only, so stage s works on batch
t - s while stage 0 works on batch t, and no device waits for a backward pass. Every block computes from
the values that it would have on one device, so the results are those of the other executors, step for step. That
holds for MAN too: a block looks at the next one after its update on the batch before, which by then is just done, so
across stages parameters travel back once a step, and nothing is stale.

The stages may belong to several processes. Each process then holds the states of its own stages, with abstract
values in place of the others', and all of them call the executor alike.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxlocal import block as block_lib
from jaxlocal.block import Block, BlockState, Metrics
from jaxlocal.executors.data_parallel import ONE_DEVICE, Placement, bytes_of_a_device, is_compiled, is_here
from jaxlocal.executors.fused import ordered
from jaxlocal.executors.link import Link
from jaxlocal.executors.loop import Span, evaluation_keys, init_state, looks_at, step_keys
from jaxlocal.executors.state import BlockMetrics, Executor, Program, TrainState, as_batch
from jaxlocal.feed import Feed, Prepare
from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import Key, abstract, computable, nbytes

ROUNDS = 4  # of a measurement, the first of which compiles


def pipelined(
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    *,
    placements: Sequence[Placement],
    starts: Sequence[int],
    prepare: Prepare = as_batch,
    dtype: Any = jnp.float32,
    batch_axes: Any = 0,
    seeds: bool = False,
) -> Executor:
    """The executor that gives each stage its own devices, and compiles it into one program.

    Steps are dispatched without waiting: a metric is there when its batch has left the block. As many batches as
    there are stages, and one more, are under way at most. ``placements`` are the devices of each stage, as many in
    each, and ``starts`` the first block of each stage but stage 0, in which ``prepare`` runs; the others are as in
    :func:`jaxlocal.executors.fused`.

    Raises:
      ValueError: if the stages do not fit the blocks or the placements, or blocks cannot compute in ``dtype``.
    """
    bounds = list(pairwise((0, *starts, len(blocks))))
    if len(placements) != len(bounds) or any(first >= end for first, end in bounds):
        raise ValueError(
            f"stages that start at blocks {(0, *starts)} on {len(placements)} placements: give every placement "
            f"at least one of the {len(blocks)} blocks, in order"
        )
    spans = [Span(blocks[first:end], feed, first, end == len(blocks)) for first, end in bounds]
    last, axis, dtype = len(spans) - 1, placements[0].axis, computable(dtype)
    over_seeds: Callable[..., Any] = (lambda f, axes=0: jax.vmap(f, axes)) if seeds else (lambda f, axes=0: f)
    onward = [Link(a, b) for a, b in pairwise(placements)]
    back = [Link(b, a) for a, b in pairwise(placements)]
    from_last = [Link(placements[-1], placement) for placement in placements[:-1]]
    under_way: deque[Any] = deque()  # metrics of the steps that were dispatched last

    @functools.cache
    def program(index: int, train: bool) -> Any:
        """Of a stage: ``(key, step, states, source) -> (new states, metrics, source of the next stage)``."""
        span = spans[index]
        run = ordered(optimizer if train else None, dtype, axis)

        def stage(key: Key, step: Any, states: Any, source: Any) -> tuple[Any, Any, Any]:
            keys = step_keys(key, step, len(blocks), axis) if train else evaluation_keys(key, len(blocks))
            carry, batch = source if index else (None, prepare(source, keys.prepare, train=train))
            if train:
                states, carry, metrics = span.step(run, states, carry, batch, keys)
            else:
                carry, metrics = span.evaluate(run, states, carry, batch, keys)
            return states if train else (), metrics, (carry, batch) if index < last else ()

        of_source = 0 if index else batch_axes
        return placements[index].program(
            over_seeds(stage, (0, 0, 0, of_source if index or train else None)),
            (None, None, None, of_source),
            (None, None, 0),
            donate_argnums=2 if train else (),
        )

    @functools.cache
    def sync(index: int, block: Block) -> Any:
        """Of a block of a stage."""
        one = over_seeds(functools.partial(block_lib.sync, block))
        return placements[index].program(one, None, None, donate_argnums=0, ordered=False)

    def look(index: int, states: list[BlockState], which: Sequence[int], link: Link, peer: BlockState) -> None:
        """Lets some blocks of a stage look at a block of another stage, as it is before its update."""
        params = link(block_lib.params_of(peer), None) if which else None
        for i in which if is_here(placements[index]) else ():
            states[i] = sync(index, blocks[i])(states[i], params)

    @functools.cache
    def shapes(index: int, train: bool, leaves: Any, structure: Any) -> Any:
        return jax.eval_shape(program(index, train), *jax.tree.unflatten(structure, leaves))

    def call(index: int, train: bool, state: TrainState, *args: Any) -> Any:
        """Runs a stage if it is here; else only its shapes are known."""
        args = *placements[index].replicate((state.key, state.step)), *args
        if is_here(placements[index]):
            return program(index, train)(*args)
        leaves, structure = jax.tree.flatten(args)
        return shapes(index, train, tuple(leaves), structure)

    def flow(state: TrainState, source: Any, *, train: bool) -> tuple[list[BlockState], list[Any]]:
        """Dispatches every stage: ``(new states, metrics)``."""
        states: list[BlockState] = []
        metrics: list[Any] = []
        for i, old in enumerate(per_stage(state.blocks)):
            if i:
                source = onward[i - 1](source, 0)
            if i and train:
                before = bounds[i][0] - 1
                look(i - 1, states, [before] * looks_at(blocks[before], "next"), back[i - 1], old[0])
            if i == last and train:
                for j, (first, end) in enumerate(bounds[:-1]):
                    which = [k for k in range(first, end) if looks_at(blocks[k], "last")]
                    look(j, states, which, from_last[j], old[-1])
            new, of_stage, source = call(i, train, state, old, source)
            states += new
            metrics += of_stage
        return states, metrics

    def per_stage(of_blocks: Any) -> list[Any]:
        return [of_blocks[first:end] for first, end in bounds]

    def init(key: Key, batch: Batch) -> TrainState:
        if seeds:
            return place(jax.vmap(functools.partial(init_state, blocks, feed, optimizer), (0, None))(key, batch))
        homes = (
            placement for placement, (first, end) in zip(placements, bounds, strict=True) for _ in range(first, end)
        )
        return init_state(blocks, feed, optimizer, key, batch, lambda state: next(homes).replicate(state))

    def step(state: TrainState, data: Any) -> tuple[TrainState, BlockMetrics]:
        if len(under_way) > last + 1:
            jax.block_until_ready(under_way.popleft())
        states, metrics = flow(state, data, train=True)
        under_way.append(metrics)
        return TrainState(state.step + 1, state.key, tuple(states)), tuple(metrics)

    def evaluate(state: TrainState, data: Any) -> BlockMetrics:
        return tuple(flow(state, data, train=False)[1])

    def programs(state: TrainState, data: Any) -> tuple[Program, ...]:
        """Of the stages that are here, or described. Before each, every batch under way may be waiting."""
        found = []
        source = data
        for i, old in enumerate(per_stage(state.blocks)):
            args = jax.tree.map(abstract, (state.key, state.step, old, source))
            if is_compiled(placements[i]):
                of_source = bytes_of_a_device(placements[i], source, 0 if i else batch_axes)
                waiting = of_source * (last + 2 if i else 1)
                found.append(Program.of(f"stage {i}", program(i, True), args, nbytes(old) + waiting))
            source = jax.eval_shape(program(i, True), *args)[2]
        return tuple(found)

    def place(state: TrainState) -> TrainState:
        placed: list[Any] = []
        for placement, states in zip(placements, per_stage(state.blocks), strict=True):
            placed += placement.replicate(states)
        return TrainState(_local(state.step), _local(state.key), tuple(placed))

    def gather(of_blocks: Any) -> Any:
        if len({frozenset(device.process_index for device in p.devices) for p in placements}) == 1:
            return of_blocks  # every process has a copy of every stage
        gathered: list[Any] = []
        for placement, tree in zip(placements, per_stage(of_blocks), strict=True):
            owner = placement.devices[0].process_index == jax.process_index()
            own = jax.tree.map(np.asarray if owner else lambda x: np.zeros(x.shape, x.dtype), tree)
            gathered += multihost_utils.broadcast_one_to_all(own, is_source=owner)
        return tuple(gathered)

    return Executor(init, step, evaluate, programs, place, gather)


def _local(x: jax.Array) -> jax.Array:
    """This process's copy of an array that every process has."""
    if isinstance(x, jax.core.Tracer) or x.is_fully_addressable:
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_local(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return x.addressable_data(0)


def block_seconds(
    blocks: Sequence[Block],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    dtype: Any = jnp.float32,
) -> tuple[float, ...]:
    """Seconds that each block's update takes on the state's device: the least of a few, so that stages can be balanced.

    ``batch`` has the examples of one device; the state is left as it is.
    """

    @functools.cache
    def compiled(block: Block) -> Any:
        program = functools.partial(block_lib.update, block, optimizer, dtype=dtype)
        return ONE_DEVICE.program(program, None, None)

    def timed(
        block: Block, state: BlockState, carry: Carry, batch: Batch, key: Key
    ) -> tuple[BlockState, Carry, Metrics]:
        jax.block_until_ready((state, carry))
        began = time.perf_counter()
        out = jax.block_until_ready(compiled(block)(state, carry, batch, key))
        taken.append(time.perf_counter() - began)
        return out

    taken: list[float] = []
    run = ordered(None, dtype, None)._replace(update=timed)
    for i in range(ROUNDS):
        Span(blocks, feed).step(run, state.blocks, None, batch, step_keys(state.key, i, len(blocks)))
    rounds = np.array(taken).reshape(ROUNDS, len(blocks))
    return tuple(rounds[1:].min(0).tolist())
