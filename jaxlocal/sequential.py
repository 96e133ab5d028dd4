"""A network that is given as one ``Sequential``, of Linen or of NNX, cut into units."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import flax.linen as nn
import numpy as np
from flax import nnx

from jaxlocal.bridge import ANY, abstract, name_of, nnx_unit, parameters, takes_train
from jaxlocal.network import kind_of

# They belong to the layer before them.
_LINEN_FOLLOWS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm, nn.Dropout)
_NNX_FOLLOWS = (nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm, nnx.Dropout)
_MODES: Mapping[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "training": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}


def units_of(
    sequential: nn.Sequential | Callable[..., nnx.Sequential], *, answers: bool = False
) -> tuple[nn.Module, ...]:
    """Cuts a ``Sequential`` into units: each layer begins one.

    Functions, norms and dropout belong to the layer before them, those in front of all layers to the first one. A
    ``Sequential`` within is one layer. Layers need not know ``train``: those that are called with ``deterministic`` or
    ``use_running_average`` are given what it means.

    Args:
      sequential: of Linen; or ``rngs -> nnx.Sequential``, a function that builds one of NNX.
      answers: whether the last layer puts out class scores, ``[b, k]``. Else the rule ends the network in a classifier
        of its own, behind a mean over pixels.

    Raises:
      TypeError: if it is no ``Sequential``, or is built already, or a layer cannot be called with one array.
      ValueError: if it has no layer, or two that share their parameters.

    Example:
      >>> units = units_of(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(8), nn.relu]))
      >>> units == (Layers((nn.Dense(8), nn.relu)),) * 2
      True
    """
    if isinstance(sequential, nnx.Module):
        raise TypeError(
            f"units_of: an NNX {type(sequential).__name__} that is built holds parameters, units do not: "
            "give the function that builds it, as units_of(lambda rngs: nnx.Sequential(...))"
        )
    if isinstance(sequential, nn.Sequential):
        layers = [_of_linen(i, layer) for i, layer in enumerate(sequential.layers)]
        groups = [layers[a:b] for a, b in _groups(layers, nn.Module, _LINEN_FOLLOWS)]
        whole = [group[0] if len(group) == 1 and takes_train(group[0]) else Layers(tuple(group)) for group in groups]
        return (*whole[:-1], Layers(tuple(groups[-1]), answers)) if answers else tuple(whole)
    if isinstance(sequential, nn.Module) or not callable(sequential):
        raise TypeError(
            f"units_of: {type(sequential).__name__} given: an nn.Sequential, or a function that builds an "
            "nnx.Sequential, can be cut; of anything else give the units yourself, as a tuple"
        )
    built = abstract(lambda rngs: sequential(rngs=rngs))
    if not isinstance(built, nnx.Sequential):
        raise TypeError(f"units_of: the function builds a {type(built).__name__}, not an nnx.Sequential")
    for i, layer in enumerate(built.layers):
        _check(i, layer)
    cuts = _groups(built.layers, nnx.Module, _NNX_FOLLOWS)
    return tuple(nnx_unit(_Part(sequential, a, b), answers and b == len(built.layers)) for a, b in cuts)


class Layers(nn.Module):
    """Layers of Linen and functions, in order, as one unit.

    It has ``strides`` where one of its layers has, the largest, and ``features`` where one has, the last one's; a
    clone at others changes them there.

    Attributes:
      layers: called with one array each.
      answers: whether the last one puts out class scores.
    """

    layers: tuple[Callable[..., Any], ...]
    answers: bool = False

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        """The two fields that rules read."""
        if name == "described":
            return next((kind_of(x) for x in self.layers if isinstance(x, nn.Module)), type(self).__name__)
        where = self._where(name)
        if where is None:
            return super().__getattr__(name)
        return _strides(self.layers[where]) if name == "strides" else getattr(self.layers[where], name)

    @nn.nowrap
    def clone(self, **changes: Any) -> "Layers":
        """A copy in which fields, or those two, are others."""
        layers: list[Any] = list(self.layers)
        for name in list(changes):
            if (where := self._where(name)) is not None:
                layers[where] = layers[where].clone(**{name: changes.pop(name)})
        return super().clone(**{"layers": tuple(layers), **changes})

    @nn.nowrap
    def _where(self, name: str) -> int | None:
        """Which layer has a field that is read off this unit."""
        layers = self.__dict__.get("layers", ()) if name in ("strides", "features") else ()
        having = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Module) and hasattr(layer, name)]
        if name == "strides":
            having.sort(key=lambda i: _strides(layers[i]))
        return having[-1] if having else None

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for layer in self.layers:
            own = {mode for mode in _MODES if getattr(layer, mode, None) is not None}  # a field of Linen's says it
            x = layer(x, **{mode: _MODES[mode](train) for mode in parameters(layer) if mode in _MODES.keys() - own})
        return x


@dataclasses.dataclass(frozen=True)
class _Part:
    """Builds some layers of an ``nnx.Sequential``, by building all."""

    make: Callable[..., nnx.Sequential]
    first: int
    end: int

    @property
    def __name__(self) -> str:
        """For who shows the network."""
        return f"layers {self.first}-{self.end - 1}"

    def __call__(self, answers: bool, *, rngs: nnx.Rngs) -> nnx.Sequential:
        """``answers`` is for who reads it off the unit."""
        return nnx.Sequential(*self.make(rngs=rngs).layers[self.first : self.end])


def _groups(layers: Sequence[Any], kind: type, follow: tuple[type, ...]) -> list[tuple[int, int]]:
    """First layer and end of each unit."""
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, kind) and not isinstance(layer, follow)]
    if not starts:
        raise ValueError(f"units_of: of {len(layers)} layers none has parameters: there is nothing to train")
    for i, layer in enumerate(layers):
        if any(layer is other for other in layers[:i]) and i in starts:
            raise ValueError(f"units_of: layer {i} is an earlier one again: a cut would break what they share")
    return list(pairwise((0, *starts[1:], len(layers))))


def _of_linen(i: int, layer: Any) -> Any:
    """A layer of a Linen ``Sequential``, which may be one itself."""
    if isinstance(layer, nn.Sequential):
        return Layers(tuple(_of_linen(i, inner) for inner in layer.layers))
    if isinstance(layer, nnx.Module):
        raise TypeError(f"units_of: layer {i} is a {type(layer).__name__} of NNX that is built: give nnx_unit(...)")
    return _check(i, layer)


def _check(i: int, layer: Any) -> Any:
    """The layer, if it can be called with one array."""
    if not callable(layer) or isinstance(layer, type):
        raise TypeError(f"units_of: layer {i} is {layer!r}: give a module, not its class, or a function of one array")
    beside = list(parameters(layer).items())[1:]
    asked = [name for name, of in beside if of.default is of.empty and of.kind not in ANY and name not in _MODES]
    if asked:
        raise TypeError(
            f"units_of: layer {i}, {name_of(layer)}, needs {', '.join(asked)} beside its input: wrap it in a module "
            "that is called with one array"
        )
    return layer


def _strides(layer: Any) -> int:
    """Of a convolution, whose may be a number, one for each axis, or None."""
    return int(np.max(layer.strides or 1))
