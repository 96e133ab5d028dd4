"""The convolution and its gradients, against the compiler's own."""

import re

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxlocal.convolution import NHWC, PART, convolve
from jaxlocal.layers import conv
from jaxlocal.variables import cast_floating

# batch, side, channels in and out, kernel, strides, groups
SHAPES = [
    (128, 16, 16, 16, 3, 1, 1),
    (2 * PART + 5, 16, 3, 8, 3, 2, 1),  # a rest
    (PART - 3, 9, 3, 8, 5, 1, 1),  # nothing but a rest
    (PART + 1, 32, 3, 8, 7, 2, 1),
    (40, 11, 4, 6, 4, 3, 1),  # an even kernel, pixels that no window covers
    (20, 8, 8, 16, 1, 2, 1),
    (20, 8, 8, 8, 1, 1, 1),
    (24, 8, 16, 16, 3, 1, 4),
    (1, 1, 4, 4, 3, 1, 1),
]


def made(shape, dtype=jnp.float32):
    """Our layer, the same with the compiler's own gradient, its variables and an input."""
    batch, side, channels, features, kernel, strides, groups = shape
    layer = conv(features, kernel, strides=strides, groups=groups, name="conv")
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels), jnp.float32)
    variables = layer.init(jax.random.key(1), x)
    return layer, layer.clone(conv_general_dilated_cls=None), *cast_floating((variables, x), dtype)


def gradients(layer, variables, x, around=lambda f: f):
    def loss(variables, x):
        y = around(layer.apply)(variables, x)
        return jnp.mean(jnp.sin(y) * y)

    return jax.grad(loss, (0, 1))(variables, x)


def relative(a, b):
    return max(
        float(jnp.abs(x - y).max() / jnp.abs(y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_compilers(shape):
    ours, own, variables, x = made(shape)
    assert relative(gradients(ours, variables, x), gradients(own, variables, x)) < 1e-5
    chex.assert_trees_all_equal(ours.apply(variables, x), own.apply(variables, x))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]])
def test_gradients_in_float64(shape):
    with jax.enable_x64(True):
        ours, own, variables, x = made(shape, jnp.float64)
        found = gradients(ours, variables, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float64")}
        assert relative(found, gradients(own, variables, x)) < 1e-13


def test_parts_are_added_up_in_float32_under_bfloat16():
    """Each of many parts adds the same: in bfloat16 the sum would stop growing."""
    ours, _, variables, _ = made((1, 1, 1, 1, 1, 1, 1), jnp.bfloat16)
    x = jnp.ones((512 * PART, 1, 1, 1), jnp.bfloat16)

    def total(variables):
        return jnp.sum(ours.apply(variables, x).astype(jnp.float32))

    kernel = jax.jit(jax.grad(total))(variables)["params"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert float(kernel[0, 0, 0, 0]) == 512 * PART


def test_a_dilated_kernel():
    x = jax.random.normal(jax.random.key(0), (PART + 2, 9, 9, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, NHWC)
    geometry = ((2, 1), ((2, 1), (0, 2)), (1, 1), (2, 3), numbers)
    losses = (lambda x, k, f=f: jnp.sum(jnp.cos(f(x, k, *geometry))) for f in (convolve, lax.conv_general_dilated))
    ours, own = (jax.grad(loss, (0, 1))(x, kernel) for loss in losses)
    assert relative(ours, own) < 1e-5


def test_under_vmap_and_remat():
    ours, own, variables, x = made(SHAPES[1])
    variables = jax.tree.map(lambda v: jnp.stack([v, 2 * v, -v]), variables)
    found = jax.jit(jax.vmap(lambda v: gradients(ours, v, x, jax.checkpoint)))(variables)
    assert relative(found, jax.vmap(lambda v: gradients(own, v, x))(variables)) < 1e-5


def test_over_devices():
    ours, own, variables, x = made((4 * PART + 4, *SHAPES[0][1:]))
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def mean(variables, x):
        return lax.pmean(gradients(ours, variables, x)[0], "data")

    specs = (jax.sharding.PartitionSpec(), spec)
    found = jax.jit(jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False))(variables, x)
    assert relative(found, gradients(own, variables, x)[0]) < 1e-5


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_devices_keep_the_compilers_own(platform):
    ours, own, variables, x = made(SHAPES[1])

    def convolutions(layer):
        traced = jax.jit(lambda v, x: gradients(layer, v, x)).trace(variables, x)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.while" not in text
        return sorted(
            re.sub(r"%\w+", "", line).strip() for line in text.splitlines() if "stablehlo.convolution" in line
        )

    assert len(convolutions(ours)) == 3
    assert convolutions(ours) == convolutions(own)


def test_a_cpus_program_does_not_grow_with_the_batch():
    """Parts are a loop, whose convolution is in the order that the CPU's library takes: elsewhere loops are slow."""
    found = []
    for parts in (2, 16):
        ours, _, variables, x = made((parts * PART, *SHAPES[0][1:]))
        text = jax.jit(lambda v, x, layer=ours: gradients(layer, v, x)[0]).lower(variables, x).compile().as_text()
        found.append(re.findall(r" convolution\(.*?dim_labels=([\w>-]+)", text))
    assert found[0] == found[1]
    assert set(found[0]) == {"b01f_01io->b01f"}
