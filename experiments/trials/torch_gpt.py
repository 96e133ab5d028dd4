"""Units and heads of language models in plain PyTorch, as nanoGPT has them, for the twins of ``torch_twin``."""

import functools
import math
from typing import Any

import flax.linen as nn

from jaxlocal.heads import Unembedding, Units
from jaxlocal.models.gpt import DEVIATION, Embedding, Layer


def has_twin(module: nn.Module) -> bool:
    """Whether a unit or head can be written here: no rotary positions, gates, dropout or other norms."""
    if isinstance(module, Units):
        return module.output is not None and all(map(has_twin, (*module.units, module.output)))
    if isinstance(module, Layer):
        return module.norms == "layer" and module.causal and not (module.gated or module.rotary or module.dropout)
    if isinstance(module, Embedding):
        return module.learned and not (module.tied or module.dropout)
    return isinstance(module, Unembedding) and module.norm == "layer" and module.each


def twin(torch: Any, module: nn.Module, features: int) -> Any:
    """A unit or head that :func:`has_twin`, drawn at random.

    Args:
      torch: the library.
      module: unit or head.
      features: of its input.
    """
    layers = torch.nn
    dense = functools.partial(layers.Linear, bias=getattr(module, "bias", False))
    norm = functools.partial(layers.LayerNorm, features, bias=getattr(module, "bias", False))

    class Embedded(layers.Module):  # type: ignore[name-defined]
        def __init__(self, unit: Embedding) -> None:
            super().__init__()
            self.tokens = layers.Embedding(unit.vocabulary, features)
            self.positions = layers.Embedding(unit.context, features)

        def forward(self, x: Any) -> Any:
            return self.tokens(x) + self.positions(torch.arange(x.shape[1]))

    class Attention(layers.Module):  # type: ignore[name-defined]
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.heads, self.qkv, self.projection = heads, dense(features, 3 * features), dense(features, features)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(features, dim=2))
            y = layers.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.projection(y.transpose(1, 2).reshape(b, t, features))

    class Residual(layers.Module):  # type: ignore[name-defined]
        def __init__(self, *inner: Any) -> None:
            super().__init__()
            self.inner = layers.Sequential(*inner)

        def forward(self, x: Any) -> Any:
            return x + self.inner(x)

    def perceptron(hidden: int) -> Any:
        return Residual(norm(), dense(features, hidden), layers.GELU(), dense(hidden, features))

    if isinstance(module, Embedding):
        found: Any = Embedded(module)
    elif isinstance(module, Layer):
        found = layers.Sequential(Residual(norm(), Attention(module.heads)), perceptron(4 * features))
    elif isinstance(module, Units):
        assert module.output is not None
        return layers.Sequential(*(twin(torch, part, features) for part in (*module.units, module.output)))
    else:
        assert isinstance(module, Unembedding)
        dense = functools.partial(layers.Linear, bias=False)
        hidden = [perceptron(max(1, int(4 * features * module.width)))] if module.hidden else []
        found = layers.Sequential(*hidden, norm(), dense(features, module.num_classes))
    for name, parameter in found.named_parameters():
        if parameter.ndim > 1:
            residual = isinstance(module, Layer) and (name.endswith("projection.weight") or ".3." in name)
            deviation = DEVIATION / math.sqrt(2 * module.layers) if residual else DEVIATION
            torch.nn.init.normal_(parameter, std=deviation)
    return found
