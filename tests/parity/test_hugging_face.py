"""Hugging Face's models, with random weights of their own, against ours: 1e-4 in float32."""

import json

import pytest

from tests.parity.shared import IMAGENET, assert_same, encoded, films, jittered, theirs

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


def saved(model, folder, *, mean=None, std=None):
    """Write a folder as the hub has it."""
    model.save_pretrained(folder)
    if mean is not None:
        preprocessor = {"image_mean": list(mean), "image_std": list(std), "do_normalize": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize("size", [32, 48])
def test_vit(tmp_path, size):
    torch.manual_seed(0)
    model = jittered(transformers.ViTModel(transformers.ViTConfig(**SIZES)))
    half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    image = films(2, size)
    want = model(theirs(image, **half), interpolate_pos_encoding=True, output_hidden_states=True)
    got = encoded(saved(model, tmp_path, **half), image, last=2)
    assert_same(got, want.last_hidden_state)
    below = model.layernorm(want.hidden_states[-2]).detach().numpy()
    assert abs(got.layers[0][1] - below[:, 1:]).max() < 1e-4


@pytest.mark.parametrize("size", [32, 16, 56])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2(tmp_path, size, swiglu, registers):
    torch.manual_seed(0)
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    more = dict(num_register_tokens=registers) if registers else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, use_swiglu_ffn=swiglu, **more)
    model = jittered(getattr(transformers, f"{name}Model")(config))
    mean, std = IMAGENET
    image = films(2, size)
    want = model(theirs(image, mean, std)).last_hidden_state
    got = encoded(saved(model, tmp_path, mean=mean, std=std), image)
    assert_same(got, want, registers=registers)
