"""What the parity tests share: films, and a file's encoder as ours."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmae_jax.digest import flatten, nested
from xmae_jax.models.convert import Foreign, fit, read_foreign
from xmae_jax.models.layers import Compute
from xmae_jax.models.vit import Encoder, EncoderConfig
from xmae_jax.objectives.mae import normalise

COMPUTE = Compute(jnp.dtype("float32"), "plain", "none")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def films(rows: int, size: int) -> np.ndarray:
    """Draw grey films, uint8 [b h w 1]."""
    return np.random.default_rng(0).integers(0, 256, (rows, size, size, 1), dtype=np.uint8)


def theirs(image: np.ndarray, mean=(0.5,) * 3, std=(0.5,) * 3):
    """Preprocess a grey film as the foreign model wants it: [b c h w], normalised."""
    import torch

    pixels = (image.astype(np.float64) / 255 - np.array(mean)) / np.array(std)  # b h w c
    return torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def jittered(model, *, scale: float = 0.1):
    """Move every parameter, as fresh biases are 0 and fresh scales 1, which hides errors."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def config_of(foreign: Foreign, **changes) -> EncoderConfig:
    """Set an encoder as the file's."""
    settings = dict(foreign.encoder)
    settings["layer_scale"] = 1.0 if settings["layer_scale"] else None
    return EncoderConfig(**(settings | changes))


def encoded(path: Path, image: np.ndarray, *, last: int = 1, **changes):
    """Read a file into our encoder, and encode films."""
    foreign = read_foreign(path)
    config = config_of(foreign, **changes)

    def make() -> Encoder:
        return Encoder(config, compute=COMPUTE, rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(make))
    wanted = {f"encoder/{n}": x.shape for n, x in flatten(nnx.to_pure_dict(state)).items()}
    params, _ = fit(foreign, wanted, encoder=config, decoder_heads=None)
    model = nnx.merge(graph, nested(params)["encoder"])
    return jax.jit(lambda x: model(normalise(x), last=last))(jnp.asarray(image))


def assert_same(features, tokens, *, registers: int = 0, atol: float = 1e-4):
    """Compare features with another model's last hidden state [b 1+r+n d]."""
    tokens = tokens.detach().numpy()
    np.testing.assert_allclose(features.cls, tokens[:, 0], atol=atol)
    np.testing.assert_allclose(features.patches, tokens[:, 1 + registers :], atol=atol)
