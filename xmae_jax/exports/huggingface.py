"""A folder that Hugging Face's transformers loads without our code.

Keys are those of the files that its releases 4 and 5 both read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from xmae_jax.exports import weights
from xmae_jax.exports.weights import Arrays
from xmae_jax.models.names import POSITIONS
from xmae_jax.models.pixel_decoder import DecoderConfig
from xmae_jax.models.vit import EncoderConfig


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a model is made of, as far as a folder can hold it."""

    encoder: EncoderConfig
    image_size: int
    fit: str
    """How films became squares in the run's data: "pad" or "squash"."""
    flat: Arrays
    """Path -> array of all parameters."""
    decoder: DecoderConfig | None = None
    mask_ratio: float = 0.0
    norm_pix_loss: bool = False
    findings: tuple[str, ...] = ()
    linear_cls: bool = False
    """The head is one linear map of the last block's CLS."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        side = self.image_size // self.encoder.patch_size
        return side, side


class NoSuchClass(Exception):
    """Hugging Face has no class for such an encoder; the message says why."""


def write_folder(folder: Path, parts: Parts, about: dict[str, str]) -> tuple[str, list[str]]:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Returns the name of the class, and what is not in it: its parameters lie beside it, as
    safetensors. Raises NoSuchClass.
    """
    if parts.encoder.stem != "linear":
        raise NoSuchClass(f"an encoder whose stem is {parts.encoder.stem!r}")
    name, config, arrays, left = _choose(parts)
    homeless = sorted(key for key in left if key.startswith("encoder/"))
    if homeless:
        raise NoSuchClass(f"an encoder with {', '.join(homeless)}")
    weights.write(folder / "model.safetensors", arrays, about)
    _write(folder / "config.json", {"architectures": [name], **config, "dtype": "float32"})
    _write(folder / "preprocessor_config.json", _preprocessor(parts))
    apart: dict[str, Arrays] = {}
    for key, array in left.items():
        apart.setdefault(key.partition("/")[0], {})[key] = array
    for part, of_part in apart.items():
        named = weights.ours(of_part)
        if part == "head":
            named = weights.head(of_part, linear_cls=parts.linear_cls)
        weights.write(folder / f"{part}.safetensors", named, about)
    return name, sorted(apart)


def _choose(parts: Parts) -> tuple[str, dict[str, Any], Arrays, Arrays]:
    """Return class, config, arrays by its names, and our parameters that it has no place for."""
    e, config = parts.encoder, _common(parts)
    if e.registers or e.layer_scale is not None or e.mlp != "gelu":
        return _dinov2(parts, config)
    if parts.decoder is not None and parts.decoder.kind == "self":
        d = parts.decoder
        arrays, left = weights.renamed(parts.flat, "HF_MAE")
        config |= {
            "model_type": "vit_mae",
            "decoder_hidden_size": d.width,
            "decoder_num_hidden_layers": d.depth,
            "decoder_num_attention_heads": d.heads,
            "decoder_intermediate_size": 4 * d.width,
            "mask_ratio": parts.mask_ratio,
            "norm_pix_loss": parts.norm_pix_loss,
        }
        return "ViTMAEForPreTraining", config, _placed(arrays, "HF_MAE", parts), left
    config |= {"model_type": "vit", "encoder_stride": e.patch_size}
    arrays, left = weights.renamed(parts.flat, "HF_VIT")
    arrays = _placed(arrays, "HF_VIT", parts)
    if parts.linear_cls:
        arrays = {f"vit.{key}": array for key, array in arrays.items()}
        named = weights.head(left, linear_cls=True)
        arrays |= {"classifier.weight": named["head.weight"], "classifier.bias": named["head.bias"]}
        config |= {
            "id2label": {str(i): name for i, name in enumerate(parts.findings)},
            "label2id": {name: i for i, name in enumerate(parts.findings)},
            "problem_type": "multi_label_classification",
        }
        return "ViTForImageClassification", config, arrays, {}
    # ViTModel has a pooler, which the encoder has not: let it give CLS as it is.
    arrays["pooler.dense.weight"] = np.eye(e.width, dtype=np.float32)
    arrays["pooler.dense.bias"] = np.zeros(e.width, np.float32)
    config["pooler_act"] = "linear"
    return "ViTModel", config, arrays, left


def _dinov2(parts: Parts, config: dict[str, Any]) -> tuple[str, dict[str, Any], Arrays, Arrays]:
    """Take the classes that have layer scale, and registers or not."""
    e = parts.encoder
    arrays, left = weights.renamed(parts.flat, "HF_DINOV2")
    arrays = _placed(arrays, "HF_DINOV2", parts)
    arrays["embeddings.mask_token"] = np.zeros((1, e.width), np.float32)  # which no film needs
    if e.layer_scale is None:
        one = np.ones(e.width, np.float32)
        for i in range(e.depth):
            arrays |= {f"encoder.layer.{i}.layer_scale{n}.lambda1": one for n in (1, 2)}
    del config["intermediate_size"]
    config |= {"mlp_ratio": 4, "use_swiglu_ffn": e.mlp == "swiglu"}
    if not e.registers:
        return "Dinov2Model", {**config, "model_type": "dinov2"}, arrays, left
    config |= {"model_type": "dinov2_with_registers", "num_register_tokens": e.registers}
    return "Dinov2WithRegistersModel", config, arrays, left


def _placed(arrays: Arrays, table: str, parts: Parts) -> Arrays:
    decoder = parts.decoder.width if parts.decoder and "decoder" in POSITIONS[table] else None
    return weights.with_positions(
        arrays, table, flat=parts.flat, encoder=parts.encoder, grid=parts.grid, decoder=decoder
    )


def _common(parts: Parts) -> dict[str, Any]:
    e = parts.encoder
    return {
        "hidden_size": e.width,
        "num_hidden_layers": e.depth,
        "num_attention_heads": e.heads,
        "intermediate_size": 4 * e.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": e.norm_eps,
        "qkv_bias": True,
        "image_size": parts.image_size,
        "patch_size": e.patch_size,
        "num_channels": 1,
    }


def _preprocessor(parts: Parts) -> dict[str, Any]:
    """Say how a film becomes `pixel_values`: one channel, from -1 to 1.

    ViTImageProcessor cannot pad: where films are padded it resizes nothing, so that a film that was
    not made square before is refused by the model and not squashed.
    """
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": False,
        "do_resize": parts.fit == "squash",
        "size": {"height": parts.image_size, "width": parts.image_size},
        "resample": 1,  # Lanczos, as data_prep has it
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5],
        "image_std": [0.5],
    }


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n")
