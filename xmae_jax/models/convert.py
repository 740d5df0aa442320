"""Weights of other code bases, as parameters of our encoder, and decoder where it is there.

Read are He et al.'s MAE (github.com/facebookresearch/mae), ViTs of timm, ViTMAE, ViT and Dinov2
with or without registers of Hugging Face (RAD-DINO is one), and the released code of Wang et al.
(arXiv 2404.17926). Differs from how those are loaded elsewhere in that nothing is skipped in
silence: what does not fit is refused with a list, and what is left out is told.

Public encoders read RGB, films are grey: a pixel x in [-1, 1] is g = x / 2 + 1 / 2 in each channel,
normalised by the file's mean and deviation. That is linear, so it goes into the first layer.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Float

from xmae_jax.models.names import POSITIONS, TABLES, Name, from_torch
from xmae_jax.models.position import resample, sincos_2d
from xmae_jax.models.vit import EncoderConfig
from xmae_jax.models.weight_files import WeightFile, read_weights

KEY = "xmae_jax_model"
"""Of our own safetensors files' metadata: `Told`, as JSON."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PREFIX = re.compile(r"^(module\.|backbone\.|_orig_mod\.|dinov2\.|dinov2_with_registers\.)+")
_RENAMED = (
    (re.compile(r"^vit\."), ""),
    (re.compile(r"^decoder\.decoder_encoder\.layer\."), "decoder.decoder_layers."),
    (re.compile(r"^register_tokens$"), "reg_token"),
)
"""(pattern, replacement): several names of one thing."""
_LEFT_OUT = re.compile(r"(head|classifier|pooler|decoder_image)\..*|(embeddings\.)?mask_token")
"""What belongs to another task than encoding whole films."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What a file of ours tells of a model that its names and shapes do not."""

    encoder: EncoderConfig
    decoder_heads: int | None
    norm_pix_loss: bool | None
    """None without a decoder."""


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A file's parameters under our names."""

    path: Path
    table: str
    """Which of `names.TABLES` it follows."""
    params: dict[str, np.ndarray]
    """float32; a stack's have the leading axis l, and heads are not split yet."""
    encoder: dict[str, Any]
    """Settings of `EncoderConfig`, None where the file does not tell; `layer_scale` is whether
    there is."""
    decoder_heads: int | None
    norm_pix_loss: bool | None
    """Whether the decoder's patches are normalised; None if the file does not tell."""
    faults: dict[str, list[str]]
    """Why a part, "encoder" or "decoder", cannot be used."""
    notes: list[str]
    """What was decided and left out, for the user."""

    @property
    def parts(self) -> set[str]:
        """Top-level names of the parameters."""
        return {name.partition("/")[0] for name in self.params}


def read_foreign(path: Path) -> Foreign:
    """Read weights of another code base; ValueError names what is missing, extra or damaged."""
    file = read_weights(path)
    arrays = {_plain(name): array for name, array in file.arrays.items()}
    if len(arrays) < len(file.arrays):
        raise ValueError(f"{file.path} has two parameters of one name but for a prefix")
    table = _table(file, arrays)
    conv = "patch_embed.conv1.weight" in arrays
    names = [n for n in TABLES[table] if _of_stem(n, conv=conv)]
    params, used, missing = _stacked(names, arrays)
    used |= {_plain(key) for key in POSITIONS[table].values()}
    left = [name for name in arrays if name not in used]
    out = sorted(n for n in left if _LEFT_OUT.fullmatch(n))
    extra = sorted(set(left) - set(out))
    if missing or extra:
        listed = [f"missing {n}" for n in missing] + [f"extra {n}" for n in extra]
        raise ValueError(f"{file.path} is no {table} that is known: {'; '.join(listed)}")
    told = _told(file)
    fixed = _Fixed(told, {_plain(name): spacing for name, spacing in file.halves.items()})
    settings = _settings(file, arrays, params, table, fixed)
    pixels = "patch_embed.conv1" if conv else _first_layer(table)
    norm_pix_loss = told.norm_pix_loss if told else _norm_pix_loss(file)
    channels = arrays[f"{pixels}.weight"].shape[1]
    faults, dropped = {}, []
    if "decoder/mask_token" in params and norm_pix_loss is None and channels > 1:
        params = {name: x for name, x in params.items() if not name.startswith("decoder/")}
        dropped = ["decoder left out: the file does not say whether norm_pix_loss was on, so its"
                   " colours cannot be made grey"]  # fmt: skip
    elif "decoder/mask_token" in params:
        side = math.isqrt(len(params["encoder/positions"]))
        faults["decoder"] = _decoder_faults(arrays, table, side, fixed)
    notes = [_to_grey(file, params, channels=channels, norm_pix_loss=bool(norm_pix_loss))]
    notes += dropped
    notes += [f"left out: {', '.join(out)}"] * bool(out)
    return Foreign(
        path=file.path,
        table=table,
        params={name: np.ascontiguousarray(x, np.float32) for name, x in params.items()},
        encoder=settings,
        decoder_heads=told.decoder_heads
        if told
        else file.config.get("decoder_num_attention_heads"),
        norm_pix_loss=norm_pix_loss,
        faults=faults,
        notes=notes,
    )


class _Fixed(NamedTuple):
    """What a file's fixed tables of positions are compared by."""

    told: Told | None
    spacing: Mapping[str, float]
    """Of the numbers that a table was stored as, by its key."""

    def unit(self, grid: int) -> int:
        """Return the side of the grid in whose unit positions are counted."""
        return self.told.encoder.base_grid if self.told else grid

    def is_table(self, key: str, positions: Float[np.ndarray, "n d"], grid: int) -> bool:
        """Say whether positions are the fixed table of He et al., as far as they were stored."""
        width = positions.shape[1]
        if width % 4 or len(positions) != grid**2:
            return False
        want = sincos_2d((grid, grid), width, base_grid=self.unit(grid))
        return np.allclose(positions, want, atol=max(1e-5, self.spacing.get(key, 0.0)))


def _told(file: WeightFile) -> Told | None:
    """Read what a file of ours tells; None of others'."""
    if KEY not in file.metadata:
        return None
    try:
        return pydantic.TypeAdapter(Told).validate_json(file.metadata[KEY], strict=True)
    except ValueError:
        raise ValueError(f"{file.path}: its metadata {KEY} are not what we write") from None


def _norm_pix_loss(file: WeightFile) -> bool | None:
    """Say whether a decoder was trained on normalised patches; None if nothing tells."""
    usual = False if file.config.get("model_type") == "vit_mae" else None
    found = file.config.get("norm_pix_loss", file.arguments.get("norm_pix_loss", usual))
    return found if isinstance(found, bool) else None


def _plain(name: str) -> str:
    name = _PREFIX.sub("", name)
    for pattern, plain in _RENAMED:
        name = pattern.sub(plain, name)
    return name


def _table(file: WeightFile, arrays: Mapping[str, np.ndarray]) -> str:
    """Tell by the names whose format it is."""
    activation = file.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ValueError(
            f"{file.path}: hidden_act is {activation!r}, and only 'gelu' is known here"
        )
    if "patch_embed.proj.weight" in arrays:
        return "MAE" if "decoder_embed.weight" in arrays else "TIMM"
    if "embeddings.patch_embeddings.projection.weight" in arrays:
        if "encoder.layer.0.norm1.weight" in arrays:
            return "HF_DINOV2"
        return "HF_MAE" if "decoder.decoder_embed.weight" in arrays else "HF_VIT"
    known = "MAE, timm's ViT, ViTMAE, ViT or Dinov2 of Hugging Face, or the released X-ray MAE"
    raise ValueError(
        f"{file.path} is not in the format of {known}; it has {', '.join(sorted(arrays)[:5])}"
    )


def _of_stem(name: Name, *, conv: bool) -> bool:
    """Say whether a name is of this stem: the last convolution of one is the whole other."""
    of_conv = name.ours.startswith("encoder/patch_embed/conv")
    return of_conv == conv or not name.ours.startswith("encoder/patch_embed/")


def _stacked(
    names: list[Name], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], set[str], list[str]]:
    """Return (parameters, keys that they took, keys that a begun parameter lacks)."""
    params, used, missing = {}, set(), []
    for name in names:
        key = name.theirs[0]
        pattern = re.compile(re.escape(_plain(key)).replace(r"\{\}", r"(\d+)"))
        found = [n for n in arrays if pattern.fullmatch(n)]
        # An optional part may be absent; a part of which a block has some is to be in all.
        # They are counted, since a file could claim any number.
        every = [[_plain(key).format(i) for key in name.theirs] for i in range(len(found))]
        lacking = [n for keys in every for n in keys if n not in arrays]
        missing += lacking
        if not every or lacking:
            continue
        used |= {n for keys in every for n in keys}
        shapes = sorted({arrays[n].shape for keys in every for n in keys})
        token = name.ours.endswith(("cls", "registers", "mask_token"))
        rank = {"conv": 4, "linear": 2, "vector": 3 if token else 1}[name.layout]
        if len(shapes) > 1 or len(shapes[0]) != rank:
            raise ValueError(f"{key} is to have one shape of {rank} axes, and has {shapes}")
        rows = [from_torch(name, [arrays[n] for n in keys]) for keys in every]
        params[name.ours] = np.stack(rows) if "{}" in key else rows[0]
    return params, used, missing


def _settings(
    file: WeightFile,
    arrays: Mapping[str, np.ndarray],
    params: dict[str, np.ndarray],
    table: str,
    fixed: _Fixed,
) -> dict[str, Any]:
    """Read the encoder's settings off names and shapes, and take its positions into `params`."""
    conv = "encoder/patch_embed/conv1/kernel" in params
    first = "encoder/patch_embed/conv16" if conv else "encoder/patch_embed"
    positions = _plain(POSITIONS[table]["encoder"])
    needed = ("encoder/cls", "encoder/blocks/norm1/scale", f"{first}/kernel", f"{first}/bias")
    absent = [name for name in needed if name not in params]
    absent += [] if positions in arrays else [positions]
    if absent:
        raise ValueError(f"{file.path}: missing {', '.join(absent)}")
    stem = ("patch_embed.conv1", "patch_embed.conv2") if conv else (_first_layer(table),)
    width, table_shape = params["encoder/cls"].shape[-1], arrays[positions].shape
    if (len(table_shape), table_shape[0], table_shape[-1]) != (3, 1, width):
        raise ValueError(f"{file.path}: {positions} is {table_shape}, and the width is {width}")
    grid = _take_positions(file, arrays[positions], params)
    registers = params.get("encoder/registers", np.zeros((1, 0, 1))).shape[1]
    sincos = fixed.is_table(positions, params["encoder/positions"], grid)
    antialiased = table == "TIMM" or (table == "HF_DINOV2" and registers > 0)
    found = dict(
        width=width,
        depth=len(params["encoder/blocks/norm1/scale"]),
        heads=file.config.get("num_attention_heads"),
        patch_size=math.prod(arrays[f"{name}.weight"].shape[-1] for name in stem),
        stem="conv" if conv else "linear",
        base_grid=fixed.unit(grid) if sincos else grid,
        positions="sincos" if sincos else "learned",
        resample="antialiased" if antialiased else "cubic",
        registers=registers,
        layer_scale="encoder/blocks/gamma1" in params,
        mlp="swiglu" if "encoder/blocks/mlp/gate_up/kernel" in params else "gelu",
        norm_eps=file.config.get("layer_norm_eps", 1e-6 if table in ("TIMM", "MAE") else None),
    )
    if fixed.told:
        ours = fixed.told.encoder
        found |= dict(heads=ours.heads, resample=ours.resample, norm_eps=ours.norm_eps)
    return found


def _first_layer(table: str) -> str:
    """Return the key, less its ending, of the layer that reads pixels."""
    (name,) = [n for n in TABLES[table] if n.ours == "encoder/patch_embed/kernel"]
    return _plain(name.theirs[0]).removesuffix(".weight")


def _take_positions(
    file: WeightFile, table: Float[np.ndarray, "1 m d"], params: dict[str, np.ndarray]
) -> int:
    """Give each token its own row of the table, and the patches the rest; return their grid."""
    rows, registers = table[0], params.get("encoder/registers")
    ahead = [0, 1] + ([1 + registers.shape[1]] if registers is not None else [])
    fitting = [
        n for n in ahead if len(rows) > n and math.isqrt(len(rows) - n) ** 2 == len(rows) - n
    ]
    if not fitting:
        raise ValueError(f"{file.path}: {len(rows)} positions are no square grid")
    if fitting[0]:
        params["encoder/cls"] = params["encoder/cls"] + rows[:1]
    if registers is not None and fitting[0] > 1:
        params["encoder/registers"] = registers + rows[1 : fitting[0]]
    params["encoder/positions"] = rows[fitting[0] :]
    return math.isqrt(len(rows) - fitting[0])


def _decoder_faults(
    arrays: Mapping[str, np.ndarray], table: str, grid: int, fixed: _Fixed
) -> list[str]:
    """Say what keeps the file's decoder from being ours, whose positions are fixed."""
    key = _plain(POSITIONS[table].get("decoder", ""))
    if key not in arrays or arrays[key].ndim != 3:
        return [f"missing {key}, [1 1+n d]"]
    rows = arrays[key][0]
    if rows[0].any() or not fixed.is_table(key, rows[1:], grid):
        return [f"{key} is not the fixed table of He et al. (arXiv 2111.06377), column first"]
    return []


def _statistics(
    file: WeightFile, channels: int
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"], str]:
    """Return mean and deviation of each channel, of values from 0 to 1, and who says so."""
    timm = file.config.get("pretrained_cfg", file.config)
    factor = file.preprocessor.get("rescale_factor", 1 / 255)
    if not file.preprocessor.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"{file.path}: its preprocessor does not scale pixels to 0 to 1")
    if "image_mean" in file.preprocessor:
        mean, std = (file.preprocessor.get(f"image_{name}") for name in ("mean", "std"))
        if not file.preprocessor.get("do_normalize", True):
            mean, std = [0.0] * channels, [1.0] * channels
        source = "preprocessor_config.json"
    elif isinstance(timm, dict) and "mean" in timm:
        mean, std, source = timm["mean"], timm.get("std"), "config.json"
    elif channels == 1:
        mean, std, source = [0.5], [0.5], "the released X-ray MAE, as the file says nothing"
    else:
        (mean, std), source = IMAGENET, "ImageNet, as the file says nothing"
    try:
        both = np.asarray([mean, std], np.float64)
    except (TypeError, ValueError):
        both = np.zeros(0)
    if both.shape != (2, channels) or not np.isfinite(both).all() or not (both[1] > 0).all():
        raise ValueError(f"{file.path}: {channels} channels, and mean {mean} and deviation {std}")
    return both[0], both[1], source


def _to_grey(
    file: WeightFile, params: dict[str, np.ndarray], *, channels: int, norm_pix_loss: bool
) -> str:
    """Let the first layer read grey pixels in [-1, 1], and the last one write them; say how."""
    mean, std, source = _statistics(file, channels)
    conv = "encoder/patch_embed/conv1/kernel" in params
    first = "encoder/patch_embed/conv16" if conv else "encoder/patch_embed"
    kernel = params[f"{first}/kernel"]
    kernel = kernel.reshape(-1, channels, kernel.shape[1]).astype(np.float64)  # pp c d
    shift = np.einsum("pcd,c->d", kernel, (0.5 - mean) / std)
    params[f"{first}/kernel"] = np.einsum("pcd,c->pd", kernel, 0.5 / std)
    params[f"{first}/bias"] = params[f"{first}/bias"] + shift
    if "decoder/pixels/kernel" in params and "decoder/pixels/bias" in params:
        kernel, bias = params["decoder/pixels/kernel"], params["decoder/pixels/bias"]
        kernel, bias = (x.reshape(*x.shape[:-1], -1, channels) for x in (kernel, bias))
        if not norm_pix_loss:  # values of a channel, back to grey ones
            kernel, bias = 2 * std * kernel, 2 * (std * bias + mean) - 1
        params["decoder/pixels/kernel"] = kernel.mean(axis=-1)
        params["decoder/pixels/bias"] = bias.mean(axis=-1)
    told = ", ".join(f"{m:g} and {s:g}" for m, s in zip(mean, std, strict=True))
    return f"{channels} channel(s) to one, with mean and deviation {told}, of {source}"


def fit(
    foreign: Foreign,
    wanted: Mapping[str, tuple[int, ...]],
    *,
    encoder: EncoderConfig,
    decoder_heads: int | None,
    norm_pix_loss: bool | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Bring a file's parameters to the shapes in `wanted`, path by path; tell what was reshaped.

    encoder: this run's; decoder_heads, norm_pix_loss: likewise, None without a decoder. Learned
    positions of another grid are resampled. ValueError lists all that does not fit.
    """
    parts = {name.partition("/")[0] for name in wanted}
    wrong = [told for part in sorted(parts) for told in foreign.faults.get(part, [])]
    wrong += other_settings(foreign.encoder, encoder)
    heads = foreign.decoder_heads
    if "decoder" in parts and heads not in (None, decoder_heads):
        wrong.append(f"config.objective.decoder.heads is {decoder_heads} here and {heads} there")
    pair = (foreign.norm_pix_loss, norm_pix_loss)
    if "decoder" in parts and None not in pair and pair[0] != pair[1]:
        wrong.append(f"config.objective.norm_pix_loss is {pair[1]} here and {pair[0]} there")
    given = {n: x for n, x in foreign.params.items() if n.partition("/")[0] in parts}
    told = []
    positions = given.pop("encoder/positions", None)
    if positions is not None and encoder.positions == "learned":
        grid = (encoder.base_grid, encoder.base_grid)
        if len(positions) != grid[0] ** 2:
            told.append(f"resampled encoder/positions: {len(positions)} to {grid[0] ** 2} patches")
        given["encoder/positions"] = np.asarray(resample(positions, grid, how=encoder.resample))
    wrong += [f"missing {name}" for name in wanted if name not in given]
    wrong += [f"extra {name}" for name in given if name not in wanted]
    fitted = {}
    for name in wanted.keys() & given.keys():
        shape, array = tuple(wanted[name]), given[name]
        rank = array.ndim - 1
        # Heads, and the three of qkv, are axes of their own here.
        if (*shape[:rank], math.prod(shape[rank:])) != array.shape:
            wrong.append(f"{name} is {array.shape} there and {shape} here")
        else:
            fitted[name] = array.reshape(shape)
    if wrong:
        raise ValueError(f"{foreign.path} does not fit:\n  " + "\n  ".join(wrong))
    return fitted, told


def other_settings(theirs: Mapping[str, Any], encoder: EncoderConfig) -> list[str]:
    """List the encoder's settings that are not others', where that changes what it computes.

    theirs: as in `Foreign.encoder`.
    """
    here, there = dataclasses.asdict(encoder), dict(theirs)
    wrong = []
    if (here["layer_scale"] is not None) != there.pop("layer_scale"):
        which = "a number, such as 1.0" if here["layer_scale"] is None else "None"
        wrong = [f"config.objective.encoder.layer_scale is to be {which}"]
    if encoder.positions == "learned":  # of any grid, and a table can hold the fixed one too
        del there["base_grid"], there["positions"]
    if "sincos" in (encoder.positions, theirs["positions"]):
        del there["resample"]
    return wrong + [
        f"config.objective.encoder.{name} is {here[name]!r} here and {value!r} there"
        for name, value in there.items()
        if value is not None and here[name] != value
    ]
