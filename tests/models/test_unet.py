"""The U-Net and the dense head: shapes, what a pixel sees, and what sizes are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xmae_jax.heads.dense import DenseHead
from xmae_jax.models.patches import patchify
from xmae_jax.models.unet import UNet, UNetConfig


@pytest.mark.parametrize(("patch_size", "widths"), [(1, (8, 16)), (4, (8, 16, 8)), (2, (16,))])
def test_features_lie_on_the_patch_grid(patch_size, widths):
    config = UNetConfig(patch_size, widths)
    net = UNet(config, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    side = 2 * config.stride
    features = net(jnp.zeros((3, side, 2 * side, 1)))
    assert features.shape == (3, side // patch_size, 2 * side // patch_size, widths[0])


def test_every_level_reaches_every_pixel():
    """The finest features know the far corner, by way of the coarsest level."""
    net = UNet(UNetConfig(2, (8, 8, 8)), dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
    slope = jax.grad(lambda x: net(x)[0, 0, 0].sum())(image)
    assert (np.abs(slope[0, -8:, -8:]) > 0).any()


def test_exposure_changes_little():
    """Norms take gain and offset of a film away but for its border, where padding is black."""
    net = UNet(UNetConfig(2, (8, 8)), dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
    difference = jnp.abs(net(image) - net(0.5 * image)).max()
    assert difference < 1e-3 < jnp.abs(net(image) - net(image[:, ::-1])).max()


def test_the_head_puts_each_pixel_in_its_place():
    head = DenseHead(5, channels=2, patch_size=4, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    features = jax.random.normal(jax.random.key(0), (2, 3, 6, 5))
    out = head(features)
    assert out.shape == (2, 12, 24, 2) and out.dtype == jnp.float32
    values = head.out(features).reshape(2, 18, 16, 2)
    for c in range(2):
        np.testing.assert_array_equal(patchify(out[..., c : c + 1], 4), values[..., c])


def test_wrong_widths_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        UNetConfig(4, (8, 12))
    with pytest.raises(ValueError, match="patch_size"):
        UNetConfig(0, (8,))
