"""Vision transformers of timm against ours: 1e-4 in float32."""

import json

import pytest

from tests.parity.shared import assert_same, encoded, films, jittered, theirs
from xmae_jax.models.convert import read_foreign

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
safetensors_torch = pytest.importorskip("safetensors.torch")

SMALL = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4)


def saved(model, folder, **cfg):
    """Write a folder as timm's hub has it."""
    safetensors_torch.save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    return folder


@pytest.mark.parametrize(
    "more",
    [
        dict(num_classes=5),
        dict(num_classes=0, reg_tokens=4, init_values=1e-5),
        dict(num_classes=0, reg_tokens=2, no_embed_class=True),
    ],
)
@pytest.mark.parametrize("size", [32, 48])
def test_small(tmp_path, more, size):
    torch.manual_seed(0)
    model = jittered(timm.models.VisionTransformer(**SMALL, **more, dynamic_img_size=True))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    image = films(2, size)
    want = model.forward_features(theirs(image, mean, std))
    got = encoded(saved(model, tmp_path, mean=mean, std=std), image, heads=4)
    assert_same(got, want, registers=more.get("reg_tokens", 0))


def test_the_head_is_left_out_and_told(tmp_path):
    model = timm.models.VisionTransformer(**SMALL, num_classes=5)
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "vit.pth")
    foreign = read_foreign(tmp_path / "vit.pth")
    assert "left out: head.bias, head.weight" in foreign.notes
    assert "3 channel(s) to one" in foreign.notes[0] and "ImageNet" in foreign.notes[0]


@pytest.mark.slow  # 86 million parameters on both sides
def test_base_of_patch_16(tmp_path):
    torch.manual_seed(0)
    # By as much as its own weights: ten times that are 1.4e-4 of rounding after twelve blocks.
    model = jittered(timm.create_model("vit_base_patch16_224", pretrained=False), scale=0.01)
    half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    image = films(1, 224)
    want = model.forward_features(theirs(image, **half))
    assert_same(encoded(saved(model, tmp_path, **half), image, heads=12), want)
