"""Hugging Face's models, with random weights of their own, against ours: 1e-4 in float32."""

import numpy as np
import pytest

from tests.parity.shared import IMAGENET, assert_same, encoded, films, jittered

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=32,
    patch_size=8,
)


def preprocessed(processor, image, folder):
    """Save a preprocessor, and let it see grey films as a hub's user would: as RGB."""
    processor.save_pretrained(folder)
    rgb = [np.repeat(one, 3, axis=-1) for one in image]
    return processor(images=rgb, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("size", [32, 48])
def test_vit(tmp_path, size):
    torch.manual_seed(0)
    model = jittered(transformers.ViTModel(transformers.ViTConfig(**SIZES)))
    model.save_pretrained(tmp_path)
    image = films(2, size)
    pixels = preprocessed(transformers.ViTImageProcessor(do_resize=False), image, tmp_path)
    want = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    got = encoded(tmp_path, image, last=2)
    assert_same(got, want.last_hidden_state)
    below = model.layernorm(want.hidden_states[-2]).detach().numpy()
    np.testing.assert_allclose(got.layers[0][1], below[:, 1:], atol=1e-4)


@pytest.mark.parametrize("size", [32, 16, 56])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2(tmp_path, size, swiglu, registers):
    torch.manual_seed(0)
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    more = dict(num_register_tokens=registers) if registers else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, use_swiglu_ffn=swiglu, **more)
    model = jittered(getattr(transformers, f"{name}Model")(config))
    model.save_pretrained(tmp_path)
    mean, std = IMAGENET
    processor = transformers.BitImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=mean, image_std=std
    )
    image = films(2, size)
    want = model(preprocessed(processor, image, tmp_path)).last_hidden_state
    assert_same(encoded(tmp_path, image), want, registers=registers)
