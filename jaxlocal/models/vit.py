"""Vision transformers: an image is cut into patches, which see each other in layers of attention."""

import flax.linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from jaxlocal.layers import EPSILON, spread
from jaxlocal.models.gpt import DEVIATION, Layer


class Patches(nn.Module):
    """What is in each patch, by one dense layer, and where it stands, learned.

    Attributes:
      features: of a patch.
      strides: the patch's side in pixels.
      dropout: rate.
    """

    features: int
    strides: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q f"]:
        b, h, w, c = x.shape
        side = self.strides
        if h % side or w % side:
            raise ValueError(f"an image of {h}x{w} pixels in patches of {side}x{side}: choose a patch that divides it")
        init = initializers.normal(DEVIATION)
        x = x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3).reshape(b, h // side, w // side, -1)
        x = nn.Dense(self.features, use_bias=False, kernel_init=init, name="patches")(x)
        x += spread(self.param("positions", init, x.shape[1:]), x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def vit(
    patch: int = 4,
    layers: int = 6,
    heads: int = 4,
    features: int = 128,
    bias: bool = False,
    norm: str = "layer",
    dropout: float = 0.0,
    epsilon: float = EPSILON,
    pooled: bool = False,
) -> tuple[nn.Module, ...]:
    """Images ``[b, h, w, c]`` to a grid ``[b, h / patch, w / patch, features]``: unit 0 embeds, each other is a layer.

    A plain ViT (Dosovitskiy et al. 2021) without a class token: behind the norm at the end, which belongs to the
    head, the mean of all patches is classified (Beyer et al. 2022). As the grid stays, heads of images read it.

    Args:
      patch: side of a patch in pixels, which divides the image's.
      layers: how many.
      heads: of attention, which divide the features.
      features: of the residual stream.
      bias: of the layers' dense layers and norms; what is added to patches is their positions' part.
      norm: ``layer`` or ``rms``.
      dropout: rate.
      epsilon: of the norms; timm's have 1e-6.
      pooled: whether the norm at the end is of the patches' mean, and the classifier behind it has a bias (timm's
        ``global_pool='avg'``).

    Raises:
      ValueError: if a number is out of range, heads do not divide the features, or the norm is not known.
    """
    if min(patch, layers, heads, features) < 1 or features % heads or not 0 <= dropout < 1 or epsilon <= 0:
        raise ValueError(
            f"patch {patch}, layers {layers}, heads {heads}, features {features}, dropout {dropout}, epsilon "
            f"{epsilon}: give 1 or more, features that the heads divide, a rate of 0 or more, below 1, and more than 0"
        )
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm {norm!r}: choose layer or rms")
    layer = Layer(heads, layers, norm, bias, causal=False, dropout=dropout, epsilon=epsilon, pooled=pooled)
    return Patches(features, patch, dropout), *(layer.clone() for _ in range(layers))
