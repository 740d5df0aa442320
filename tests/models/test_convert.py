"""Weights files: the released X-ray model's names, grey from RGB, positions, and refusals."""

import argparse
import json
import pickle
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from flax import nnx
from safetensors.numpy import save_file

from tests.helpers import small_encoder
from xmae_jax.digest import flatten
from xmae_jax.models.convert import fit, read_foreign
from xmae_jax.models.layers import Compute
from xmae_jax.models.names import TABLES, from_torch, to_torch
from xmae_jax.models.position import resample, sincos_2d
from xmae_jax.models.vit import Encoder
from xmae_jax.models.weight_files import read_weights

COMPUTE = Compute(jnp.dtype("float32"), "plain", "none")


def state_dict(*, channels=1, width=16, depth=2, patch=4, grid=3, seed=0) -> dict:
    """Draw weights under the names of facebookresearch/mae's encoder."""
    draw = np.random.default_rng(seed)
    shapes = {"cls_token": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
    for i in range(depth):
        for name, shape in {
            "norm1": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "norm2": (width,),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    shapes["patch_embed.proj.weight"] = (width, channels, patch, patch)
    shapes["patch_embed.proj.bias"] = (width,)
    arrays = {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    table = np.zeros((1, grid**2 + 1, width), np.float32)
    table[0, 1:] = sincos_2d((grid, grid), width, base_grid=grid)
    return arrays | {"pos_embed": table}


def xray(**more) -> dict:
    """Draw the released X-ray model's encoder, with its stem and its wrappers' prefixes."""
    draw = np.random.default_rng(1)
    arrays = state_dict(**more)
    for name, shape in {
        "conv1": (16, 1, 16, 16),
        "conv2": (16, 16, 4, 4),
        "proj": (16, 16, 1, 1),
    }.items():
        arrays[f"patch_embed.{name}.weight"] = 0.1 * draw.normal(size=shape).astype(np.float32)
        arrays[f"patch_embed.{name}.bias"] = draw.normal(size=shape[:1]).astype(np.float32)
    arrays |= {"decoder_image.weight": np.ones((1, 196)), "decoder_image.bias": np.ones(1)}
    arrays |= {"head.mlp.0.weight": np.ones((4, 16)), "head.last_layer.weight_g": np.ones((4, 1))}
    return {f"module.backbone.{name}": np.float32(x) for name, x in arrays.items()}


def fitted(foreign, **settings):
    """Fit a file to an encoder; return (parameters, lines)."""
    config = small_encoder(patch_size=4, base_grid=3, **settings)
    model = nnx.eval_shape(lambda: Encoder(config, compute=COMPUTE, rngs=nnx.Rngs(0)))
    shapes = flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    wanted = {f"encoder/{name}": leaf.shape for name, leaf in shapes.items()}
    return fit(foreign, wanted, encoder=config, decoder_heads=None)


def test_the_released_xray_model(tmp_path):
    arrays = xray()
    save_file(arrays, tmp_path / "checkpoint-83.safetensors")
    foreign = read_foreign(tmp_path / "checkpoint-83.safetensors")
    assert foreign.encoder["stem"] == "conv" and foreign.encoder["patch_size"] == 64
    assert foreign.encoder["positions"] == "sincos" and foreign.encoder["base_grid"] == 3
    left = "left out: decoder_image.bias, decoder_image.weight, head.last_layer.weight_g, head.mlp"
    assert any(note.startswith(left) for note in foreign.notes)
    config = small_encoder(patch_size=64, stem="conv", base_grid=3)
    model = Encoder(config, compute=COMPUTE, rngs=nnx.Rngs(0))
    wanted = {
        f"encoder/{name}": leaf.shape
        for name, leaf in flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()
    }
    params, _ = fit(foreign, wanted, encoder=config, decoder_heads=None)
    film = np.random.default_rng(2).normal(size=(1, 64, 64, 1)).astype(np.float32)

    def conv(x, name, stride):
        weight, bias = (
            arrays[f"module.backbone.patch_embed.{name}.{n}"] for n in ("weight", "bias")
        )
        y = jax.lax.conv_general_dilated(
            x, weight, (stride, stride), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC")
        )
        return y + bias[None, None, None]

    x = jax.nn.relu(conv(film, "conv1", 16))
    want = conv(jax.nn.relu(conv(x, "conv2", 4)), "proj", 1)[0, 0, 0]
    stem = {
        part: {kind: params[f"encoder/patch_embed/{part}/{kind}"] for kind in ("kernel", "bias")}
        for part in ("conv16", "conv4", "conv1")
    }
    nnx.update(model.patch_embed, stem)
    np.testing.assert_allclose(
        model.patch_embed(jnp.asarray(film.reshape(1, 1, -1)))[0, 0], want, atol=1e-5
    )


def test_its_last_bias_is_not_taken_for_a_patch_embedding(tmp_path):
    save_file(xray(), tmp_path / "x.safetensors")
    foreign = read_foreign(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="encoder.stem is 'linear' here and 'conv' there") as error:
        fitted(foreign)
    assert "extra encoder/patch_embed/conv1/bias" in str(error.value)
    assert "missing encoder/patch_embed/bias" in str(error.value)
    assert "encoder.patch_size is 4 here and 64 there" in str(error.value)


def test_grey_goes_into_the_first_layer(tmp_path):
    arrays = state_dict(channels=3)
    save_file(arrays, tmp_path / "model.safetensors")
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    (tmp_path / "config.json").write_text(json.dumps({"mean": mean, "std": std}))
    params, told = fitted(read_foreign(tmp_path))
    assert not told
    x = np.random.default_rng(3).uniform(-1, 1, (4, 4))
    rgb = ((0.5 * x + 0.5)[None] - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    want = np.einsum("dcij,cij->d", arrays["patch_embed.proj.weight"].astype(np.float64), rgb)
    got = x.reshape(-1) @ params["encoder/patch_embed/kernel"] + params["encoder/patch_embed/bias"]
    np.testing.assert_allclose(got, want + arrays["patch_embed.proj.bias"], atol=1e-5)
    np.testing.assert_array_equal(params["encoder/cls"], arrays["cls_token"])


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ("cubic", [-0.10546875, 0.87890625, 0.26171875, -0.03515625]),
        ("antialiased", [-0.0703125, 0.8671875, 0.2265625, -0.0234375]),
    ],
)
def test_positions_are_resampled_by_the_published_cubics(how, weights):
    # At twice the size a new cell lies a quarter off an old one: Keys' formula, by hand.
    table = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    got = resample(table, (16, 8), how=how).reshape(16, 8, 3)
    old = table.reshape(8, 8, 3)
    np.testing.assert_allclose(got[7], np.tensordot(weights, old[2:6], 1), atol=1e-6)
    ones = np.ones((64, 3), np.float32)
    for grid in ((3, 16), (11, 5)):
        np.testing.assert_allclose(resample(ones, grid, how=how), 1.0, atol=1e-6)
    np.testing.assert_array_equal(resample(table, (8, 8), how=how), table)


def test_learned_positions_of_another_grid_are_resampled_and_told(tmp_path):
    arrays = state_dict(grid=5)
    arrays["pos_embed"] = np.random.default_rng(4).normal(size=(1, 26, 16)).astype(np.float32)
    save_file(arrays, tmp_path / "x.safetensors")
    foreign = read_foreign(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="encoder.positions is 'sincos' here and 'learned' there"):
        fitted(foreign)
    params, told = fitted(foreign, positions="learned", resample="antialiased")
    assert told == ["resampled encoder/positions: 25 to 9 patches"]
    want = resample(arrays["pos_embed"][0, 1:], (3, 3), how="antialiased")
    np.testing.assert_array_equal(params["encoder/positions"], want)
    # CLS has a row of its own.
    want = arrays["cls_token"] + arrays["pos_embed"][:, :1]
    np.testing.assert_array_equal(params["encoder/cls"], want)


def test_the_fixed_table_may_be_learned_on(tmp_path):
    save_file(state_dict(), tmp_path / "x.safetensors")
    params, _ = fitted(read_foreign(tmp_path / "x.safetensors"), positions="learned")
    want = sincos_2d((3, 3), 16, base_grid=3)
    np.testing.assert_allclose(params["encoder/positions"], want, atol=1e-6)


def without(arrays, name):
    return {n: x for n, x in arrays.items() if n != name}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (state_dict(width=32), ["encoder.width is 16 here and 32 there", "encoder/norm/scale is"]),
        (state_dict(depth=3), ["encoder.depth is 2 here and 3 there"]),
        (state_dict(patch=8), ["encoder.patch_size is 4 here and 8 there", "(64, 16) there"]),
        (state_dict(grid=4), ["encoder.base_grid is 3 here and 4 there"]),
        (without(state_dict(), "cls_token"), ["missing encoder/cls"]),
        (without(state_dict(), "blocks.1.attn.qkv.bias"), ["qkv/bias is (1, 48) there"]),
        (without(state_dict(), "blocks.0.attn.qkv.bias"), ["missing blocks.0.attn.qkv.bias"]),
        (without(state_dict(), "norm.weight"), ["missing encoder/norm/scale"]),
        (without(state_dict(), "pos_embed"), ["missing pos_embed"]),
        (
            state_dict() | {"blocks.0.attn.q_norm.weight": np.ones(4)},
            ["extra blocks.0.attn.q_norm"],
        ),
        (state_dict() | {"blocks.0.ls1.gamma": np.ones(16)}, ["layer_scale is to be a number"]),
        (state_dict() | {"norm.bias": np.full(16, np.nan)}, ["not finite: norm.bias"]),
        (state_dict() | {"module.norm.bias": np.ones(16)}, ["two parameters of one name"]),
        (state_dict(channels=2), ["2 channels, and mean"]),
        (state_dict() | {"cls_token": np.ones(16)}, ["cls_token is to have one shape of 3 axes"]),
        (state_dict() | {"blocks.1.norm1.bias": np.ones(8)}, ["blocks.{}.norm1.bias is to have"]),
        (state_dict() | {"patch_embed.proj.weight": np.ones((16, 16))}, ["one shape of 4 axes"]),
        (state_dict() | {"pos_embed": np.ones((10, 16))}, ["pos_embed is (10, 16)"]),
        (state_dict() | {"pos_embed": np.ones((1, 10, 8))}, ["and the width is 16"]),
        (state_dict() | {"pos_embed": np.ones((1, 12, 16))}, ["12 positions are no square grid"]),
        (
            state_dict() | {f"blocks.{'9' * 5000}.norm1.bias": np.ones(16)},
            ["missing blocks.2.norm1.bias", "extra blocks.9999"],
        ),
        ({"conv.weight": np.ones((3, 3))}, ["not in the format of", "it has conv.weight"]),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path, arrays, words):
    save_file({n: np.float32(x) for n, x in arrays.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as error:
        fitted(read_foreign(tmp_path / "x.safetensors"))
    for word in words:
        assert word in str(error.value)


def test_settings_of_a_folder_are_compared(tmp_path):
    save_file(state_dict(), tmp_path / "model.safetensors")
    for key, value, word in (
        ("layer_norm_eps", 1e-12, "norm_eps is 1e-06 here and 1e-12 there"),
        ("num_attention_heads", 4, "heads is 2 here and 4 there"),
        ("hidden_act", "quick_gelu", "hidden_act is 'quick_gelu'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({key: value}))
        with pytest.raises(ValueError, match=word):
            fitted(read_foreign(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text('{"rescale_factor": 1.0}')
    with pytest.raises(ValueError, match="does not scale pixels"):
        read_foreign(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        read_foreign(tmp_path)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def damaged(folder, kind):
    """Write a file that is no weights file."""
    good = folder / "good.safetensors"
    save_file(state_dict(), good)
    data = good.read_bytes()
    path = folder / ("bad.pth" if kind in ("evil", "evil zip", "text") else "bad.safetensors")
    if kind == "evil":
        with path.open("wb") as file:
            pickle.dump({"model": {}, "args": Evil(folder / "trace")}, file, protocol=2)
    elif kind == "evil zip":
        import torch

        torch.save({"model": {}, "args": Evil(folder / "trace")}, path)
    else:
        path.write_bytes(
            {
                "truncated": data[:-100],
                "short": data[:4],
                "empty": b"",
                "huge header": struct.pack("<Q", 2**62) + data[8:],
                "overlap": data[:8] + data[8:].replace(b"[0,", b"[4,", 1),
                "text": b"not a pickle",
            }[kind]
        )
    return path


@pytest.mark.parametrize(
    "kind",
    ["truncated", "short", "empty", "huge header", "overlap", "evil", "evil zip", "text"],
)
def test_damaged_and_hostile_files_are_refused(tmp_path, kind):
    if kind in ("evil", "evil zip", "text"):
        pytest.importorskip("torch")
    path = damaged(tmp_path, kind)
    with pytest.raises(ValueError, match="bad") as error:
        read_foreign(path)
    assert ("code in a file is not run" if path.suffix == ".pth" else "no whole") in str(
        error.value
    )
    assert not (tmp_path / "trace").exists()


def test_without_torch_a_pickle_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = damaged(tmp_path, "evil")
    with pytest.raises(ValueError, match=r"pip install 'xmae_jax\[convert\]'"):
        read_foreign(path)
    assert not (tmp_path / "trace").exists()


def test_a_pytorch_that_runs_code_is_not_used(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ValueError, match=r"2\.9\.1.*CVE-2026-24747.*2\.10 or newer"):
        read_foreign(damaged(tmp_path, "evil zip"))


def test_a_training_checkpoint_with_its_arguments_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = state_dict()
    tensors = {f"module.{name}": torch.tensor(x) for name, x in arrays.items()}
    torch.save(
        {"model": tensors, "args": argparse.Namespace(lr=1.0), "epoch": 3}, tmp_path / "x.pth"
    )
    params = read_foreign(tmp_path / "x.pth").params
    np.testing.assert_array_equal(params["encoder/norm/scale"], arrays["norm.weight"])


@pytest.mark.parametrize("said", [True, False, None])
def test_colours_of_a_decoder_are_made_grey_as_its_training_was(tmp_path, said):
    torch = pytest.importorskip("torch")
    draw, arrays = np.random.default_rng(0), state_dict(channels=3)
    shapes = {"decoder_embed.weight": (8, 16), "decoder_embed.bias": (8,), "mask_token": (1, 1, 8)}
    shapes |= {"decoder_norm.weight": (8,), "decoder_norm.bias": (8,)}
    shapes |= {"decoder_pred.weight": (48, 8), "decoder_pred.bias": (48,)}
    of_block = {"norm1": (8,), "attn.qkv": (24, 8), "attn.proj": (8, 8), "norm2": (8,)}
    for name, shape in (of_block | {"mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}).items():
        shapes |= {f"decoder_blocks.0.{name}.weight": shape}
        shapes |= {f"decoder_blocks.0.{name}.bias": shape[:1]}
    arrays |= {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    arrays["decoder_pos_embed"] = np.zeros((1, 10, 8), np.float32)
    arrays["decoder_pos_embed"][0, 1:] = sincos_2d((3, 3), 8, base_grid=3)
    args = argparse.Namespace(**({} if said is None else {"norm_pix_loss": said}))
    model = {n: torch.tensor(x) for n, x in arrays.items()}
    torch.save({"model": model, "args": args}, tmp_path / "x.pth")
    foreign = read_foreign(tmp_path / "x.pth")
    assert foreign.norm_pix_loss == said
    if said is None:
        assert foreign.parts == {"encoder"}
        assert any("decoder left out" in note for note in foreign.notes)
        return
    mean = arrays["decoder_pred.bias"].reshape(16, 3).mean(-1)
    same = np.allclose(foreign.params["decoder/pixels/bias"], mean, atol=1e-6)
    assert same == said
    wanted = {name: x.shape for name, x in foreign.params.items() if name[:7] == "decoder"}
    with pytest.raises(ValueError, match=f"norm_pix_loss is {not said} here and {said} there"):
        encoder = small_encoder(patch_size=4, base_grid=3)
        fit(foreign, wanted, encoder=encoder, decoder_heads=2, norm_pix_loss=not said)


def test_a_view_that_repeats_its_numbers_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"cls_token": torch.zeros(1).expand(10**13)}}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match="cls_token claims more numbers than the file holds"):
        read_weights(tmp_path / "x.pth")


def test_the_fixed_table_is_known_in_half_precision(tmp_path):
    halves = {n: x.astype(np.float16) for n, x in state_dict(width=32, grid=4).items()}
    save_file(halves, tmp_path / "x.safetensors")
    assert read_foreign(tmp_path / "x.safetensors").encoder["positions"] == "sincos"


def test_the_names_of_dinov2s_own_code_are_read(tmp_path):
    draw = np.random.default_rng(6)
    more = {"register_tokens": (1, 3, 16), "mask_token": (1, 16)}
    more |= {f"blocks.{i}.ls{j}.gamma": (16,) for i in (0, 1) for j in (1, 2)}
    arrays = state_dict() | {n: draw.normal(size=s).astype(np.float32) for n, s in more.items()}
    save_file({f"teacher.backbone.{n}": x for n, x in arrays.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not in the format"):
        read_foreign(tmp_path / "x.safetensors")
    save_file({f"backbone.{n}": x for n, x in arrays.items()}, tmp_path / "x.safetensors")
    foreign = read_foreign(tmp_path / "x.safetensors")
    assert "left out: mask_token" in foreign.notes
    params, _ = fitted(foreign, registers=3, layer_scale=1.0)
    np.testing.assert_array_equal(params["encoder/registers"], arrays["register_tokens"])
    np.testing.assert_array_equal(params["encoder/blocks/gamma2"][1], arrays["blocks.1.ls2.gamma"])


def test_half_precision_is_read(tmp_path):
    arrays = state_dict()
    halves = {n: np.asarray(jnp.asarray(x, jnp.bfloat16)) for n, x in arrays.items()}
    safetensors.flax.save_file(
        {n: jnp.asarray(x) for n, x in halves.items()}, tmp_path / "x.safetensors"
    )
    read = read_weights(tmp_path / "x.safetensors").arrays
    for name, half in halves.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], half.astype(np.float32))


@pytest.mark.parametrize("table", TABLES)
def test_names_go_both_ways(table):
    """Each parameter of every table: to PyTorch and back is what it was, and no two share a key."""
    draw = np.random.default_rng(5)
    shapes = {
        "qkv/kernel": (8, 3, 2, 4),
        "qkv/bias": (3, 2, 4),
        "gate_up/kernel": (8, 2, 6),
        "gate_up/bias": (2, 6),
        "conv16/kernel": (256, 8),
        "conv4/kernel": (128, 8),
        "patch_embed/kernel": (16, 8),
        "kernel": (8, 12),
        "cls": (1, 1, 8),
        "registers": (1, 4, 8),
        "mask_token": (1, 1, 8),
    }
    seen = set()
    for name in TABLES[table]:
        shape = next((s for n, s in shapes.items() if name.ours.endswith(n)), (12,))
        array = draw.normal(size=shape)
        parts = to_torch(name, array)
        assert len(parts) == len(name.theirs)
        np.testing.assert_array_equal(from_torch(name, parts).reshape(shape), array)
        key = (name.ours.startswith("encoder/patch_embed/conv"), *name.theirs)
        assert key not in seen
        seen.add(key)
