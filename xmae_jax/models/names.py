"""Names of one model's parameters here and in PyTorch, as data that reading and writing share.

Tables: `TIMM` is facebookresearch/mae's encoder, which has timm's names; `MAE` adds its decoder;
`HF_VIT`, `HF_MAE` and `HF_DINOV2` are what Hugging Face's folders hold. A table names more than any
one model has: registers, layer scales, either stem, either MLP. Position tables stand in none of
them, since PyTorch keeps CLS's row in them: see `POSITIONS`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np


class Name(NamedTuple):
    """One parameter here, and what it is made of there."""

    ours: str
    """Path; below `blocks/` it has a leading axis l."""
    theirs: tuple[str, ...]
    """Keys whose arrays, joined along their first axis, make it; {} is the index of the block."""
    layout: Literal["vector", "linear", "conv"]
    """How they lie there: as here but flat, as [out in], or as [out in h w]."""


POSITIONS = {
    "TIMM": {"encoder": "pos_embed"},
    "MAE": {"encoder": "pos_embed", "decoder": "decoder_pos_embed"},
    "HF_VIT": {"encoder": "embeddings.position_embeddings"},
    "HF_MAE": {
        "encoder": "vit.embeddings.position_embeddings",
        "decoder": "decoder.decoder_pos_embed",
    },
    "HF_DINOV2": {"encoder": "embeddings.position_embeddings"},
}
"""Keys of the position tables [1 1+n d], CLS's row first, of each table of names."""


def _layer(ours: str, *theirs: str, layout: Literal["linear", "conv"] = "linear") -> list[Name]:
    """Name a kernel and its bias."""
    return [
        Name(f"{ours}/kernel", tuple(f"{one}.weight" for one in theirs), layout),
        Name(f"{ours}/bias", tuple(f"{one}.bias" for one in theirs), "vector"),
    ]


def _norm(ours: str, theirs: str) -> list[Name]:
    return [
        Name(f"{ours}/scale", (f"{theirs}.weight",), "vector"),
        Name(f"{ours}/bias", (f"{theirs}.bias",), "vector"),
    ]


def _token(ours: str, theirs: str) -> list[Name]:
    return [Name(ours, (theirs,), "vector")]


def _timm_blocks(ours: str, theirs: str) -> list[Name]:
    return [
        *_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        *_layer(f"{ours}/attention/qkv", f"{theirs}.attn.qkv"),
        *_layer(f"{ours}/attention/out", f"{theirs}.attn.proj"),
        *_token(f"{ours}/gamma1", f"{theirs}.ls1.gamma"),
        *_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        *_layer(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        *_layer(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
        *_token(f"{ours}/gamma2", f"{theirs}.ls2.gamma"),
    ]


def _hf_attention(ours: str, theirs: str) -> list[Name]:
    parts = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
    return [
        *_layer(f"{ours}/attention/qkv", *parts),
        *_layer(f"{ours}/attention/out", f"{theirs}.attention.output.dense"),
    ]


def _hf_vit_blocks(ours: str, theirs: str) -> list[Name]:
    return [
        *_norm(f"{ours}/norm1", f"{theirs}.layernorm_before"),
        *_hf_attention(ours, theirs),
        *_norm(f"{ours}/norm2", f"{theirs}.layernorm_after"),
        *_layer(f"{ours}/mlp/up", f"{theirs}.intermediate.dense"),
        *_layer(f"{ours}/mlp/down", f"{theirs}.output.dense"),
    ]


def _hf_dinov2_blocks(ours: str, theirs: str) -> list[Name]:
    return [
        *_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        *_hf_attention(ours, theirs),
        *_token(f"{ours}/gamma1", f"{theirs}.layer_scale1.lambda1"),
        *_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        *_layer(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        *_layer(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
        *_layer(f"{ours}/mlp/gate_up", f"{theirs}.mlp.weights_in"),
        *_layer(f"{ours}/mlp/down", f"{theirs}.mlp.weights_out"),
        *_token(f"{ours}/gamma2", f"{theirs}.layer_scale2.lambda1"),
    ]


def _hf_embeddings(prefix: str) -> list[Name]:
    return [
        *_token("encoder/cls", f"{prefix}embeddings.cls_token"),
        *_layer(
            "encoder/patch_embed",
            f"{prefix}embeddings.patch_embeddings.projection",
            layout="conv",
        ),
        *_norm("encoder/norm", f"{prefix}layernorm"),
    ]


TIMM = (
    *_token("encoder/cls", "cls_token"),
    *_token("encoder/registers", "reg_token"),
    *_layer("encoder/patch_embed", "patch_embed.proj", layout="conv"),
    # The released X-ray model's stem, whose last convolution has the name of the only one above.
    *_layer("encoder/patch_embed/conv16", "patch_embed.conv1", layout="conv"),
    *_layer("encoder/patch_embed/conv4", "patch_embed.conv2", layout="conv"),
    *_layer("encoder/patch_embed/conv1", "patch_embed.proj", layout="conv"),
    *_timm_blocks("encoder/blocks", "blocks.{}"),
    *_norm("encoder/norm", "norm"),
)
MAE = (
    *TIMM,
    *_layer("decoder/embed", "decoder_embed"),
    *_token("decoder/mask_token", "mask_token"),
    *_timm_blocks("decoder/blocks", "decoder_blocks.{}"),
    *_norm("decoder/norm", "decoder_norm"),
    *_layer("decoder/pixels", "decoder_pred"),
)
HF_VIT = (
    *_hf_embeddings(""),
    *_hf_vit_blocks("encoder/blocks", "encoder.layer.{}"),
)
HF_MAE = (
    *_hf_embeddings("vit."),
    *_hf_vit_blocks("encoder/blocks", "vit.encoder.layer.{}"),
    *_layer("decoder/embed", "decoder.decoder_embed"),
    *_token("decoder/mask_token", "decoder.mask_token"),
    *_hf_vit_blocks("decoder/blocks", "decoder.decoder_layers.{}"),
    *_norm("decoder/norm", "decoder.decoder_norm"),
    *_layer("decoder/pixels", "decoder.decoder_pred"),
)
HF_DINOV2 = (
    *_hf_embeddings(""),
    *_token("encoder/registers", "embeddings.register_tokens"),
    *_hf_dinov2_blocks("encoder/blocks", "encoder.layer.{}"),
)
TABLES = {
    "TIMM": TIMM,
    "MAE": MAE,
    "HF_VIT": HF_VIT,
    "HF_MAE": HF_MAE,
    "HF_DINOV2": HF_DINOV2,
}


def to_torch(name: Name, array: np.ndarray) -> list[np.ndarray]:
    """Turn one parameter into the arrays of `name.theirs`, for one block if it is a block's.

    Of a convolution the input has one channel, but for the second of the stem, which has d.
    """
    if name.layout == "conv":
        inputs = array.shape[1] if name.ours.endswith("/conv4/kernel") else 1
        if name.ours.endswith("/conv1/kernel"):
            inputs = array.shape[0]
        side = round((array.shape[0] / inputs) ** 0.5)
        array = array.reshape(side, side, inputs, -1).transpose(3, 2, 0, 1)
    elif name.layout == "linear":
        array = array.reshape(array.shape[0], -1).T
    elif len(name.theirs) > 1 or not name.ours.endswith(("cls", "registers", "mask_token")):
        array = array.reshape(-1)
    return [np.ascontiguousarray(part) for part in np.split(array, len(name.theirs))]


def from_torch(name: Name, arrays: list[np.ndarray]) -> np.ndarray:
    """Undo `to_torch` but for the shape: kernels are [in out], the rest as it lies there."""
    array = np.concatenate(arrays)
    if name.layout == "conv":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if name.layout == "linear" else array
