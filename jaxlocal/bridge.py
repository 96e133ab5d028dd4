"""Modules of Flax NNX as units.

A unit holds no parameters: they are drawn from a run's seed when the network is initialised, and drawn anew where a
rule copies a unit. So an NNX module is named by its class and arguments, and built inside the step. What it holds is
sorted by type into Linen collections: ``nnx.Param`` trains (``params``), ``nnx.BatchStat`` runs along
(``batch_stats``), any other variable never changes (``fixed``). The state of random generators is none of the
unit's: each step draws it from the run's key.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from flax.core import FrozenDict

from jaxlocal.variables import FIXED, RUNNING

_PASSING = (nnx.RngState, nnx.Intermediate, nnx.Perturbation)  # in no state of a run
_KINDS: Mapping[str, Any] = {
    "params": nnx.Param,
    RUNNING: nnx.BatchStat,
    FIXED: nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat, *_PASSING)),
}
ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class NnxUnit(nn.Module):
    """What :func:`nnx_unit` returns. The arguments that the module is built with are attributes of it, too.

    Attributes:
      made: the class, or a function that builds the module.
      given: arguments by name.
    """

    made: Callable[..., nnx.Module]
    given: Mapping[str, Any]

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        """Arguments of the module: a rule reads ``strides`` and ``features``."""
        given = self.__dict__.get("given", {})
        if name == "described":
            return name_of(self.made)
        return given[name] if name in given else super().__getattr__(name)

    @nn.nowrap
    def clone(self, **changes: Any) -> "NnxUnit":
        """A copy in which fields, or arguments of the module, are others."""
        of_module = {name: changes.pop(name) for name in list(changes) if name in self.given}
        if of_module:
            changes["given"] = FrozenDict({**self.given, **of_module})
        return super().clone(**changes)

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        shape = jax.tree.map(jnp.shape, x)
        build = functools.partial(_build, self.made, self.given, shape)
        if self.is_initializing():
            try:
                module = build(nnx.Rngs(self.make_rng("params")))
                self._write(module, _KINDS)
                return _call(module, x, train=train)
            except (TypeError, ValueError) as error:
                reason = next(iter(str(error).splitlines()), "")
                raise ValueError(
                    f"unit {name_of(self.made)} cannot read an input of shape {shape}: {reason}"
                ) from error
        module = abstract(build)  # what it holds is in the variables
        for collection, kind in _KINDS.items():
            _update(module, kind, traverse_util.flatten_dict(dict(self.variables.get(collection, {}))))
        self._seed(module, train=train)
        before = _values(module, _KINDS[FIXED])
        y = _call(module, x, train=train)
        changed = [path for path, value in _values(module, _KINDS[FIXED]).items() if before.get(path) is not value]
        if changed:
            raise ValueError(
                f"unit {name_of(self.made)} changes {'.'.join(changed[0])} as it computes: only an nnx.BatchStat may "
                "run along, make it one"
            )
        if self.is_mutable_collection(RUNNING):
            self._write(module, (RUNNING,))
        return y

    @nn.nowrap
    def _write(self, module: nnx.Module, collections: Iterable[str]) -> None:
        for collection in collections:
            for name, tree in traverse_util.unflatten_dict(_values(module, _KINDS[collection])).items():
                self.put_variable(collection, name, tree)

    @nn.nowrap
    def _seed(self, module: nnx.Module, *, train: bool) -> None:
        """Random generators of the module start from the step's key; in evaluation, which uses none, from 0."""
        keys, counts = (_values(module, kind) for kind in (nnx.RngKey, nnx.RngCount))
        key = self.make_rng("dropout") if train and keys else jax.random.key(0)
        _update(module, nnx.RngKey, {path: jax.random.fold_in(key, i) for i, path in enumerate(keys)})
        _update(module, nnx.RngCount, {path: jnp.zeros(x.shape, x.dtype) for path, x in counts.items()})


def nnx_unit(made: Callable[..., nnx.Module], *args: Any, **kwargs: Any) -> NnxUnit:
    """An NNX module as a unit, called as ``unit(x, train=...)``.

    The module is set to training or evaluation by its ``train()`` or ``eval()``, and called as ``module(x)``; with
    ``train=...`` where its ``__call__`` takes that. Parameters of the constructor with these names are read by rules:
    ``in_features``, where it is left out, is the size of the input's last axis, so that a unit may be copied to another
    place (AugLocal); ``strides`` and ``features`` are as in :mod:`jaxlocal.network`.

    Args:
      made: the class, or a function that builds the module. It is given ``rngs`` if it takes it.
      *args: for ``made``; hashable.
      **kwargs: likewise.

    Raises:
      TypeError: if a module that is built already is given, or arguments do not fit, or they are not hashable.

    Example:
      >>> unit = nnx_unit(nnx.Linear, out_features=3)
      >>> unit == nnx_unit(nnx.Linear, out_features=3)
      True
      >>> unit.init_with_output(jax.random.key(0), jnp.ones((2, 5)), train=False)[0].shape
      (2, 3)
    """
    name = name_of(made)
    if any(isinstance(one, nnx.Module) for one in jax.tree.leaves((made, args, kwargs), is_leaf=_is_module)):
        raise TypeError(
            f"nnx_unit({name}): a module that is built holds parameters, units do not: give its class and arguments, "
            "as nnx_unit(nnx.Linear, 8, 8)"
        )
    if not callable(made):
        raise TypeError(f"nnx_unit({made!r}): give a class of NNX modules, or a function that builds one")
    signature = _signature(made)
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"nnx_unit({name}): {error}; it takes {signature}") from error
    if "rngs" in bound.arguments:
        raise TypeError(f"nnx_unit({name}): rngs given; leave it out, the seed of the run draws the parameters")
    bound.apply_defaults()
    filled = {*bound.arguments, "rngs", "in_features"}
    if missing := [key for key, of in signature.parameters.items() if key not in filled and of.kind not in ANY]:
        raise TypeError(f"nnx_unit({name}): no {', '.join(missing)} given; it takes {signature}")
    given: Any = FrozenDict({key: _frozen(value) for key, value in bound.arguments.items() if key != "rngs"})
    try:
        hash((made, given))
    except TypeError as error:
        raise TypeError(f"nnx_unit({name}): {error}: a unit is hashable, give tuples and numbers, no arrays") from error
    return NnxUnit(made, given)


def _signature(made: Callable[..., Any]) -> inspect.Signature:
    """Of a constructor, without ``self``; NNX's metaclass hides that of a class."""
    if not isinstance(made, type):
        return inspect.signature(made)
    if made.__init__ is object.__init__:  # type: ignore[misc]
        return inspect.Signature()
    _, *others = inspect.signature(made.__init__).parameters.values()  # type: ignore[misc]
    return inspect.Signature(others)


def parameters(layer: Any) -> Mapping[str, inspect.Parameter]:
    """What a layer or function is called with; empty where it does not say."""
    try:
        return inspect.signature(layer).parameters
    except ValueError:
        return {}


def takes_train(layer: Any) -> bool:
    """Whether it is called with ``train``."""
    return "train" in parameters(layer)


def name_of(layer: Any) -> str:
    """Of a class or function, or the class of an object."""
    return getattr(layer, "__name__", None) or type(layer).__name__


def _is_module(x: Any) -> bool:
    return isinstance(x, nnx.Module)


def _frozen(x: Any) -> Any:
    """Lists, which cannot be hashed, to tuples, and mappings to Flax's."""
    if isinstance(x, list):
        return tuple(map(_frozen, x))
    return FrozenDict(x) if isinstance(x, Mapping) else x


def _build(made: Callable[..., nnx.Module], given: Mapping[str, Any], shape: Any, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the module for inputs of this shape."""
    signature = _signature(made)
    bound = inspect.BoundArguments(signature, dict(given))
    own: dict[str, Any] = {}
    kinds = {of.kind for of in signature.parameters.values()}
    if "rngs" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds:
        own["rngs"] = rngs
    if "in_features" in signature.parameters and "in_features" not in given:
        own["in_features"] = shape[-1]
    module = made(*bound.args, **bound.kwargs, **own)
    if not isinstance(module, nnx.Module):
        raise TypeError(f"it builds a {type(module).__name__}, not an NNX module")
    for _, part in nnx.iter_modules(module):
        if plain := [name for name, value in vars(part).items() if isinstance(value, jax.Array)]:
            raise TypeError(
                f"{type(part).__name__}.{plain[0]} is a plain array, which NNX takes for a constant of what is "
                "compiled: make it an nnx.Variable, or a NumPy array"
            )
    return module


def abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """The module with shapes in the place of arrays; nothing is drawn."""
    return nnx.eval_shape(lambda: build(nnx.Rngs(0)))


def _call(module: Any, x: Any, *, train: bool) -> Any:
    """The module's output, in training or in evaluation."""
    (module.train if train else module.eval)()
    return module(x, train=train) if takes_train(module) else module(x)


def _values(module: nnx.Module, kind: Any) -> dict[tuple[str, ...], Any]:
    """What a module holds of a kind, by path; places in a list are numbers as text."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module, kind)))
    return {tuple(map(str, path)): value for path, value in flat.items()}


def _update(module: nnx.Module, kind: Any, values: Mapping[tuple[str, ...], Any]) -> None:
    """Puts values in the place of those that a module holds."""
    state = nnx.state(module, kind)
    paths = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict({p: values[tuple(map(str, p))] for p in paths}))
    nnx.update(module, state)
