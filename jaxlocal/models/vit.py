"""Vision transformers: stacks of transformer layers over patches of an image (Dosovitskiy et al. 2021)."""

import flax.linen as nn
from flax.linen import initializers
from jaxtyping import Array, Float

from jaxlocal.models.gpt import DEVIATION, Layer


class Patches(nn.Module):
    """What is in each patch, and where it stands.

    Attributes:
      patch: side, in pixels; it divides the image's.
      features: of what it puts out.
    """

    patch: int
    features: int

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j f"]:
        del train
        _, height, width, _ = image.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"an image of {height}x{width} is no grid of patches of {self.patch}: give a divisor")
        window = (self.patch, self.patch)
        init = initializers.normal(DEVIATION)
        x = nn.Conv(self.features, window, window, "VALID", use_bias=False, kernel_init=init, name="patches")(image)
        return x + self.param("positions", init, x.shape[1:]).astype(x.dtype)


class GridLayer(nn.Module):
    """A transformer layer over all patches, which stay a grid.

    Attributes:
      heads: as in :class:`jaxlocal.models.gpt.Layer`, as are the others.
      layers: of the whole network.
      norms: ``layer`` or ``rms``.
      bias: of dense layers and norms.
    """

    heads: int
    layers: int
    norms: str = "layer"
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b i j f"], *, train: bool) -> Float[Array, "b i j f"]:
        layer = Layer(self.heads, self.layers, self.norms, self.bias, causal=False, name="layer")
        return layer(x.reshape(len(x), -1, x.shape[-1]), train=train).reshape(x.shape)


def vit(
    patch: int = 4, layers: int = 6, heads: int = 4, features: int = 128, bias: bool = False, norm: str = "layer"
) -> tuple[nn.Module, ...]:
    """Images ``[b, h, w, c]`` to a grid of patches ``[b, h / patch, w / patch, features]``, which heads of images read.

    Unit 0 embeds patches and positions, each other is a pre-norm layer. The head averages the patches (Beyer et al.
    2022, "Better plain ViT baselines"); there is no class token.

    Args:
      patch: side of a patch, in pixels.
      layers: how many.
      heads: of attention, which divide the features.
      features: of the residual stream.
      bias: of dense layers and norms.
      norm: ``layer`` or ``rms``.

    Raises:
      ValueError: if a number is out of range, heads do not divide the features, or the norm is not known.
    """
    if min(patch, layers, heads, features) < 1 or features % heads:
        raise ValueError(
            f"patch {patch}, layers {layers}, heads {heads}, features {features}: give 1 or more, features that "
            "the heads divide"
        )
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm {norm!r}: choose layer or rms")
    return Patches(patch, features), *(GridLayer(heads, layers, norm, bias) for _ in range(layers))
