"""The same program on several devices, each with its part of the batch and the whole state.

Executors compile their programs by a :class:`Placement` and know nothing else of devices:
:class:`OneDevice`, or :class:`DataParallel` over any number. Over devices that are only described
(:func:`jaxlocal.executors.described`) programs can be compiled, and not run. A program sees one device's
part. What is split over devices is averaged where it meets (:func:`jaxlocal.axis.mean_over`), so
states stay equal, and are ordinary replicated arrays outside.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxlocal.axis import DataAxis
from jaxlocal.executors.accelerators import is_described
from jaxlocal.executors.compiler import compiler_options
from jaxlocal.executors.placed import Placed, is_traced
from jaxlocal.target import traced_for
from jaxlocal.variables import abstract, nbytes

AXIS = "data"


@runtime_checkable
class Placement(Protocol):
    """Where programs run.

    Attributes:
      axis: that examples are split along; None on one device.
      devices: of all processes.
    """

    @property
    def axis(self) -> DataAxis | None: ...

    @property
    def devices(self) -> tuple[jax.Device, ...]: ...

    def sharding(self, axis: int | None) -> jax.sharding.Sharding:
        """Of arrays that every device has whole (None) or a part of (0)."""

    def program(
        self, f: Callable[..., Any], inputs: Any, outputs: Any, *, donate_argnums: Any = (), ordered: bool = True
    ) -> Any:
        """Compiles ``f`` when it is called, as ``jax.jit`` does.

        Args:
          f: a pure function of one device's part.
          inputs: for each argument, None (every device has all of it) or 0 (split), or a tree of these.
          outputs: likewise, of the result.
          donate_argnums: arguments whose memory the result may take.
          ordered: whether it has blocks whose order is to be kept (:func:`jaxlocal.executors.compiler_options`).
        """

    def replicate(self, tree: Any) -> Any:
        """Every device gets all of it. Of devices of other processes, shapes are all that is known."""

    def each(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """``f`` of split arguments, outside of programs."""

    def positions(self, n: int) -> np.ndarray:
        """Which of a batch's ``n`` examples the devices of this process take, ``[n]`` or ``[devices, part of n]``.

        Where ``n`` does not split evenly every device takes all examples, which changes no mean.
        """

    def spread(self, data: Any, axes: Any) -> Any:
        """A step's data, to where programs take them.

        Args:
          data: what is split at the :meth:`positions` of a batch; what is not, whole.
          axes: a tree prefix of None (for all devices) and 0 (split).
        """


class OneDevice:
    """Everything on one device.

    Args:
      device: None for JAX's default.
    """

    axis = None

    def __init__(self, device: jax.Device | None = None) -> None:
        self._device = device

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        return (self._device or jax.local_devices()[0],)

    def sharding(self, axis: int | None) -> jax.sharding.Sharding:
        del axis
        return SingleDeviceSharding(self.devices[0])

    def program(
        self, f: Callable[..., Any], inputs: Any, outputs: Any, *, donate_argnums: Any = (), ordered: bool = True
    ) -> Any:
        del inputs, outputs
        return _jitted(self, f, donate_argnums, ordered)

    def replicate(self, tree: Any) -> Any:
        return _put(self, tree, self._device)

    def each(self, f: Callable[..., Any]) -> Callable[..., Any]:
        return f

    def positions(self, n: int) -> np.ndarray:
        return np.arange(n, dtype=np.int32)

    def spread(self, data: Any, axes: Any) -> Any:
        del axes
        return _put(self, data, self._device)


class DataParallel:
    """Every device runs the program on its part of the batch.

    Outside of programs, what is split has a leading axis of devices. ``pmap`` and ``shard_map`` give the same
    numbers; ``jax.pmap`` takes no compiler options, so on a CPU a step takes more memory under it.

    Args:
      devices: to use.
      mapping: the JAX transformation. None for pmap, but shard_map if the devices are of several processes:
        what pmap puts out belongs to one of them.
      sync_batch_norm: whether batch norms take their statistics over the whole batch, rather than over
        each device's part.
    """

    def __init__(
        self,
        devices: Sequence[jax.Device],
        mapping: Literal["pmap", "shard_map"] | None = None,
        *,
        sync_batch_norm: bool = False,
    ) -> None:
        self.axis = DataAxis(AXIS, sync_batch_norm)
        self.devices = tuple(devices)
        self._mapping = mapping or ("pmap" if _is_local(self) else "shard_map")
        self._mesh = Mesh(np.array(self.devices), (AXIS,))

    def sharding(self, axis: int | None) -> jax.sharding.Sharding:
        return NamedSharding(self._mesh, _SPECS[axis])

    def program(
        self, f: Callable[..., Any], inputs: Any, outputs: Any, *, donate_argnums: Any = (), ordered: bool = True
    ) -> Any:
        """``jax.pmap``, or ``jax.shard_map`` under ``jax.jit``."""
        if not jax.tree.leaves(inputs):  # of replicated arrays
            return _jitted(self, f, donate_argnums, ordered)
        # Under check_vma the mean of local gradients would come out multiplied by the number of devices.
        mapped = jax.shard_map(
            lambda *args: _mapped(lambda x: x[None], outputs, f(*_mapped(lambda x: x[0], inputs, args))),
            mesh=self._mesh,
            in_specs=_specs(inputs),
            out_specs=_specs(outputs),
            check_vma=False,
        )
        axes, device = {"in_axes": inputs, "out_axes": outputs}, self.devices[0]
        if self._mapping == "shard_map":
            options = compiler_options(device.platform, described=is_described(device)) if ordered else None
            inner = traced_for(device, mapped)
            program = jax.jit(inner, donate_argnums=donate_argnums, compiler_options=options)
        else:
            traced = traced_for(device, f)
            program = jax.pmap(traced, AXIS, **axes, devices=self.devices, donate_argnums=donate_argnums)
            inner = program

        def part(*args: Any) -> Any:
            one = _mapped(lambda x: x[:1], inputs, args)
            return jax.vmap(f, in_axes=inputs, axis_name=AXIS, axis_size=1)(*one)

        return Placed(program, self.devices, inner, part)

    def replicate(self, tree: Any) -> Any:
        return _put(self, tree, self.sharding(None))

    def positions(self, n: int) -> np.ndarray:
        everyone = np.arange(n, dtype=np.int32)
        size = len(self.devices)
        rows = everyone.reshape(size, -1) if n % size == 0 else np.tile(everyone, (size, 1))
        return rows[[device.process_index == jax.process_index() for device in self.devices]]

    def spread(self, data: Any, axes: Any) -> Any:
        def one(axis: int | None, part: Any) -> Any:
            return self.replicate(part) if axis is None else jax.tree.map(self._split, part)

        return jax.tree.map(one, axes, data, is_leaf=_is_none)

    def each(self, f: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(f)

    def _split(self, x: Any) -> Any:
        if not is_here(self):
            return jax.ShapeDtypeStruct((len(self.devices), *x.shape[1:]), x.dtype)
        return jax.make_array_from_process_local_data(self.sharding(0), np.asarray(x))


def _jitted(placement: Placement, f: Callable[..., Any], donate_argnums: Any, ordered: bool) -> Any:
    """``f`` under ``jax.jit``, where each device has all of what goes in and comes out."""
    device = placement.devices[0]
    where: Any = {}
    if only_described := is_described(device):  # no argument says it
        where = {"in_shardings": placement.sharding(None), "out_shardings": placement.sharding(None)}
    options = compiler_options(device.platform, described=only_described) if ordered else None
    program = jax.jit(traced_for(device, f), donate_argnums=donate_argnums, compiler_options=options, **where)
    counted = f if only_described or device.platform == "gpu" else None  # nobody counts what a kernel of cuDNN's does
    return Placed(program, placement.devices, f, counted)


def is_here(placement: Placement) -> bool:
    """Whether programs run on any of its devices in this process."""
    here = jax.process_index()
    return any(device.process_index == here and not is_described(device) for device in placement.devices)


def is_compiled(placement: Placement) -> bool:
    """Whether this process compiles its programs."""
    return is_here(placement) or is_described(placement.devices[0])


def bytes_of_a_device(placement: Placement, tree: Any, axes: Any) -> int:
    """Bytes that a tree takes on each device; ``axes`` say what is split, as in :meth:`Placement.spread`."""

    def one(axis: int | None, part: Any) -> int:
        return nbytes(part) // (1 if axis is None else len(placement.devices))

    return sum(jax.tree.leaves(jax.tree.map(one, axes, tree, is_leaf=_is_none)))


def _is_local(placement: Placement) -> bool:
    here = jax.process_index()
    return all(device.process_index == here and not is_described(device) for device in placement.devices)


def _put(placement: Placement, tree: Any, where: Any) -> Any:
    if is_traced(tree):
        return tree
    if is_described(device := placement.devices[0]):
        raise ValueError(f"{device.device_kind} is only described here: programs are compiled for it, none can run")
    if not is_here(placement):
        return jax.tree.map(abstract, tree)
    if _is_local(placement):
        return jax.device_put(tree, where)
    return jax.tree.map(lambda x: _shared(x, where), tree)


def _shared(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array of several processes, of what each of them has alike."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_shared(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def _mapped(f: Callable[[Any], Any], axes: Any, tree: Any) -> Any:
    """``f`` of every leaf that is split."""

    def one(axis: int | None, part: Any) -> Any:
        return part if axis is None else jax.tree.map(f, part)

    return jax.tree.map(one, axes, tree, is_leaf=_is_none)


def _is_none(axis: Any) -> bool:
    return axis is None


def _specs(axes: Any) -> Any:
    return jax.tree.map(_SPECS.__getitem__, axes, is_leaf=_is_none)


_SPECS = {None: PartitionSpec(), 0: PartitionSpec(AXIS)}


ONE_DEVICE = OneDevice()
