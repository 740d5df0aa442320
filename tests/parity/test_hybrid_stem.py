"""The hybrid stem beside PyTorch's convolutions, instance norms and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xmae_jax.models.vit import HybridStem

torch = pytest.importorskip("torch")


def test_tokens_are_those_of_pytorch():
    stem = HybridStem(16, 8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    # Norms that do something.
    draws = nnx.Rngs(params=1)
    for _, norm in nnx.iter_graph(stem):
        if isinstance(norm, nnx.GroupNorm):
            norm.scale[...] = jax.random.uniform(draws.params(), norm.scale.shape, minval=0.5)
            norm.bias[...] = jax.random.normal(draws.params(), norm.bias.shape)
    image = np.random.default_rng(0).normal(size=(2, 32, 48, 1)).astype(np.float32)
    got = jax.jit(stem)(image)

    def tensor(array):
        return torch.from_numpy(np.array(array))

    x = tensor(image).permute(0, 3, 1, 2)
    x = torch.nn.functional.pixel_unshuffle(x, 2)
    for level in range(3):
        if level:
            x = torch.nn.functional.max_pool2d(x, 2)
        block = getattr(stem, f"level{level}")
        for conv, norm in ((block.conv1, block.norm1), (block.conv2, block.norm2)):
            kernel = tensor(conv.kernel[...]).permute(3, 2, 0, 1)
            x = torch.nn.functional.conv2d(x, kernel, padding=1)
            x = torch.nn.functional.instance_norm(
                x, weight=tensor(norm.scale[...]), bias=tensor(norm.bias[...]), eps=1e-5
            ).relu()
    x = x.flatten(2).transpose(1, 2)
    want = x @ tensor(stem.out.kernel[...]) + tensor(stem.out.bias[...])
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4)
