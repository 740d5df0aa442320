"""T5 weights files: settings read off them, and refusals by name."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from xmae_jax.models.convert_t5 import check_t5, read_t5
from xmae_jax.models.t5 import T5Config

CONFIG = T5Config(
    vocab=10, width=8, depth=2, heads=3, head_width=4, hidden=12, gated=True, tied=False,
    buckets=6, max_distance=20, norm_eps=1e-5,
)  # fmt: skip
TOLD = dict(
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    relative_attention_max_distance=20,
    layer_norm_epsilon=1e-5,
)
RELATIVE = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def state_dict(*, gated: bool = True, head: bool = True) -> dict[str, np.ndarray]:
    """Draw weights under Hugging Face's names."""
    draw = np.random.default_rng(0)
    linear = {"SelfAttention": "0", "EncDecAttention": "1"}
    shapes = {"shared.weight": (10, 8), "decoder.final_layer_norm.weight": (8,)}
    for i in range(2):
        block = f"decoder.block.{i}.layer"
        for name, place in linear.items():
            for part in "qkv":
                shapes[f"{block}.{place}.{name}.{part}.weight"] = (12, 8)
            shapes[f"{block}.{place}.{name}.o.weight"] = (8, 12)
        for part in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{block}.2.DenseReluDense.{part}.weight"] = (12, 8)
        shapes[f"{block}.2.DenseReluDense.wo.weight"] = (8, 12)
        shapes |= {f"{block}.{j}.layer_norm.weight": (8,) for j in range(3)}
    shapes[RELATIVE] = (6, 3)
    shapes["encoder.final_layer_norm.weight"] = (8,)
    if head:
        shapes["lm_head.weight"] = (10, 8)
    return {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def saved(folder, arrays, **told):
    """Write a Hugging Face folder."""
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TOLD | told))
    return folder


def test_settings_and_arrays(tmp_path):
    arrays = state_dict()
    arrays["decoder.embed_tokens.weight"] = arrays["shared.weight"].copy()
    foreign = read_t5(saved(tmp_path, arrays))
    assert foreign.config == CONFIG
    assert foreign.notes == ["left out: the encoder, 1 arrays"]
    want = arrays["decoder.block.1.layer.0.SelfAttention.k.weight"].T.reshape(8, 3, 4)
    np.testing.assert_array_equal(foreign.params["blocks/attention/qkv/kernel"][1, :, 1], want)
    np.testing.assert_array_equal(foreign.params["out/kernel"], arrays["lm_head.weight"].T)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_map(tmp_path, tied):
    """A file without a map of its own uses the embedding, with T5's factor or without."""
    arrays = state_dict(gated=False, head=False)
    told = dict(feed_forward_proj="relu", tie_word_embeddings=True, scale_decoder_outputs=tied)
    foreign = read_t5(saved(tmp_path, arrays, **told))
    assert foreign.config == dataclasses.replace(CONFIG, gated=False, tied=tied)
    if tied:
        assert "out/kernel" not in foreign.params
    else:
        np.testing.assert_array_equal(foreign.params["out/kernel"], arrays["shared.weight"].T)


def test_a_file_alone_tells_most(tmp_path):
    save_file(state_dict(), tmp_path / "any.safetensors")
    foreign = read_t5(tmp_path / "any.safetensors")
    usual = dict(max_distance=128, norm_eps=1e-6)
    assert foreign.config == dataclasses.replace(CONFIG, **usual)
    assert "no config.json" in foreign.notes[0]


def test_settings_are_compared(tmp_path):
    foreign = read_t5(saved(tmp_path, state_dict()))
    check_t5(foreign, dataclasses.replace(CONFIG, dropout=0.3))
    with pytest.raises(ValueError, match="(?s)vocab is 7 here and 10 there.*tied is True here"):
        check_t5(foreign, dataclasses.replace(CONFIG, vocab=7, tied=True))


def test_what_does_not_belong_is_named(tmp_path):
    arrays = state_dict()
    lacking = {n: x for n, x in arrays.items() if n != "decoder.block.1.layer.2.layer_norm.weight"}
    lacking["decoder.adapter.weight"] = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError) as error:
        read_t5(saved(tmp_path, lacking))
    assert "missing decoder.block.1.layer.2.layer_norm.weight" in str(error.value)
    assert "extra decoder.adapter.weight" in str(error.value)
    for changes, told, said in (
        ({}, dict(feed_forward_proj="gated-silu"), "'gated-silu'"),
        ({}, dict(tie_word_embeddings=True), "lm_head.weight is not the shared.weight"),
        ({"decoder.embed_tokens.weight": arrays["lm_head.weight"] + 1}, {}, "embed_tokens"),
        (
            {"decoder.block.0.layer.1.EncDecAttention.q.weight": np.ones((8, 8), np.float32)},
            {},
            "cross/q/kernel",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            read_t5(saved(tmp_path, arrays | changes, **told))
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no T5 with a decoder"):
        read_t5(tmp_path / "other.safetensors")


def test_a_block_that_is_far_off_is_named_at_once(tmp_path):
    far, norm = "9" * 5000, "layer.0.layer_norm.weight"
    arrays = state_dict() | {f"decoder.block.{far}.{norm}": np.ones(8, np.float32)}
    with pytest.raises(ValueError, match=f"missing decoder.block.2.{norm}.*extra .*{far}"):
        read_t5(saved(tmp_path, arrays))


def test_an_output_map_of_its_own_is_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="missing lm_head.weight"):
        read_t5(saved(tmp_path, state_dict(head=False)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder.block.0.layer.0.SelfAttention.q.weight": (96,)}, "SelfAttention.q.weight .96,."),
        ({"decoder.block.1.layer.2.layer_norm.weight": (1, 8)}, "layer_norm.weight .1, 8. is to"),
        ({RELATIVE: (6,)}, "relative_attention_bias.weight .6,. is to have 2 axes"),
        ({RELATIVE: (6, 0)}, "relative_attention_bias.weight .6, 0. is to have"),
        ({"decoder.final_layer_norm.weight": (7,)}, "final_layer_norm.weight is to be .8,., and"),
        ({"lm_head.weight": (9, 8)}, "lm_head.weight is to be .10, 8., and is .9, 8."),
        ({"relative_attention_max_distance": None}, "config.json: relative.* is None"),
        ({"layer_norm_epsilon": "1e-6"}, "config.json: layer_norm_epsilon is '1e-6'"),
        ({"relative_attention_max_distance": float("inf")}, "config.json: relative.* is inf"),
        ({"feed_forward_proj": ["relu"]}, "feed_forward_proj is"),
    ],
)
def test_shapes_and_settings_that_cannot_be_are_named(tmp_path, changes, said):
    arrays = {n: np.ones(s, np.float32) for n, s in changes.items() if n.endswith("weight")}
    told = {n: value for n, value in changes.items() if n not in arrays}
    with pytest.raises(ValueError, match=said):
        read_t5(saved(tmp_path, state_dict() | arrays, **told))
