"""One compiled program per block; a block's state may rest in host memory while others run.

Only one block's temporaries exist at a time, whatever the compiler thinks of order, and
blocks of equal structure are compiled once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlocal import block as block_lib
from jaxlocal.block import Block, BlockState
from jaxlocal.executors.data_parallel import ONE_DEVICE, Placement, bytes_of_a_device
from jaxlocal.executors.loop import Run, Span, StepKeys, evaluation_keys, init_state, looks_at, step_keys
from jaxlocal.executors.placed import is_traced
from jaxlocal.executors.state import BlockMetrics, Executor, Program, TrainState, as_batch
from jaxlocal.feed import Feed, Prepare
from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import Key, abstract, computable, nbytes


def streamed(
    blocks: tuple[Block, ...],
    feed: Feed,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare = as_batch,
    dtype: Any = jnp.float32,
    batch_axes: Any = 0,
    seeds: bool = False,
    placement: Placement = ONE_DEVICE,
    offload: bool = False,
) -> Executor:
    """The executor that compiles each block by itself, and ``prepare``. Arguments are those of ``fused``.

    With ``offload``, a block's parameters, head and optimizer state rest in host memory and are on the device only
    around the block's turn. The next block's transfer overlaps the present block's computation, so three states at
    most are on the device. Old states are not donated in host memory: it holds two of each during a step. Several
    seeds are initialised on the device.

    Raises:
      ValueError: if blocks cannot compute in ``dtype``.
    """
    axis, dtype = placement.axis, computable(dtype)
    over_seeds: Callable[..., Any] = (lambda f, axes=0: jax.vmap(f, axes)) if seeds else (lambda f, axes=0: f)

    @functools.cache
    def update(block: Block) -> Any:
        one = over_seeds(functools.partial(block_lib.update, block, optimizer, dtype=dtype, axis=axis))
        return placement.program(one, (None, 0, 0, 0), (None, 0, None), donate_argnums=0)

    @functools.cache
    def sync(block: Block) -> Any:
        one = over_seeds(functools.partial(block_lib.sync, block))
        return placement.program(one, None, None, donate_argnums=0, ordered=False)

    @functools.cache
    def evaluate_one(block: Block) -> Any:
        one = over_seeds(functools.partial(block_lib.evaluate, block, dtype=dtype, axis=axis))
        return placement.program(one, (None, 0, 0, 0), (0, None))

    to_host = functools.partial(_moved, to="pinned_host")
    run = Run(
        update=lambda block, *args: update(block)(*args),
        sync=lambda block, *args: sync(block)(*args),
        evaluate=lambda block, *args: evaluate_one(block)(*args),
    )
    if offload:
        run = run._replace(fetch=functools.partial(_moved, to="device"), rest=to_host, pace=_pace())

    def fed(index: int, previous: Carry, batch: Batch, key: Key, *, train: bool) -> Carry:
        return placement.each(over_seeds(functools.partial(feed, index, train=train)))(previous, batch, key)

    def init(key: Key, batch: Batch) -> TrainState:
        def rest(state: BlockState) -> BlockState:
            state = placement.replicate(state)
            return to_host(state) if offload else state

        if not seeds:
            return init_state(blocks, feed, optimizer, key, batch, rest)
        state = jax.vmap(lambda key: init_state(blocks, feed, optimizer, key, batch))(key)
        return TrainState(state.step, state.key, tuple(map(rest, state.blocks)))

    def beginning(train: bool) -> Any:
        def one(key: Key, step: Any, data: Any) -> tuple[Batch, StepKeys]:
            keys = step_keys(key, step, len(blocks), axis) if train else evaluation_keys(key, len(blocks))
            return prepare(data, keys.prepare, train=train), keys

        of_data = batch_axes if train else None
        return placement.program(over_seeds(one, (0, 0, of_data)), (None, None, batch_axes), (0, 0), ordered=False)

    begin_step, begin_evaluation = beginning(train=True), beginning(train=False)

    def step(state: TrainState, data: Any) -> tuple[TrainState, BlockMetrics]:
        batch, keys = begin_step(state.key, state.step, data)
        states, _, metrics = Span(blocks, fed).step(run, state.blocks, None, batch, keys)
        return TrainState(state.step + 1, state.key, states), metrics

    def evaluate(state: TrainState, data: Any) -> BlockMetrics:
        batch, keys = begin_evaluation(state.key, state.step, data)
        return Span(blocks, fed).evaluate(run, state.blocks, None, batch, keys)[1]

    def programs(state: TrainState, data: Any) -> tuple[Program, ...]:
        """The step on abstract values, with every call lowered instead of run."""
        found: dict[Any, Program] = {}

        def lower(what: str, program: Any, resident: int, *args: Any) -> Any:
            leaves, structure = jax.tree.flatten(args)
            same = (program, structure, tuple(map(abstract, leaves)))
            if same not in found:
                found[same] = Program.of(what, program, args, resident, times=0)
            seen = found[same]
            found[same] = seen._replace(times=seen.times + 1, resident=max(resident, seen.resident))
            return seen.lowered.out_info

        sizes = [nbytes(block) for block in state.blocks]
        seen = nbytes(block_lib.params_of(state.blocks[-1])) * any(looks_at(block, "last") for block in blocks)
        here = [_window(sizes, i) + seen if offload else sum(sizes) for i in range(len(sizes))]
        of_data = bytes_of_a_device(placement, data, batch_axes)
        batch, keys = lower("prepare", begin_step, of_data + here[0], state.key, state.step, data)
        base, turn = of_data + bytes_of_a_device(placement, batch, 0), iter(here)

        def lower_update(block: Block, old: BlockState, carry: Carry, *args: Any) -> Any:
            return lower(
                "update", update(block), base + next(turn) + bytes_of_a_device(placement, carry, 0), old, carry, *args
            )

        def lower_sync(block: Block, *args: Any) -> Any:
            return lower("sync", sync(block), base + max(here), *args)

        def feed_shape(index: int, previous: Carry, batch: Batch, key: Any, *, train: bool) -> Carry:
            return jax.eval_shape(functools.partial(fed, index, train=train), previous, batch, key)

        shapes = jax.tree.map(abstract, state.blocks)
        Span(blocks, feed_shape).step(Run(lower_update, lower_sync, run.evaluate), shapes, None, batch, keys)
        return tuple(found.values())

    return Executor(init, step, evaluate, programs)


def _moved(tree: Any, to: str) -> Any:
    """Starts the transfer: a plain copy between memories, which runs beside what the device computes."""
    if is_traced(tree):
        return tree
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding.with_memory_kind(to), tree))


def _pace() -> Callable[[Any], None]:
    """Waits until what the block before left is there: else the host would run ahead and fetch every block at once."""
    before: Any = ()

    def pace(left: Any) -> None:
        nonlocal before
        jax.block_until_ready(before)
        before = left

    return pace


def _window(sizes: Sequence[int], i: int) -> int:
    """Most bytes of states on the device while block i is at work: three in a row, around it or from it on."""
    k = len(sizes)
    return max(sum(sizes[j % k] for j in range(start, start + min(3, k))) for start in (i - 1, i))
