"""Decoder weights of Hugging Face's T5, v1.1 and Flan-T5, as parameters of ours.

Read is the decoder with the embedding that it shares with the encoder; the encoder is left out.
Nothing is skipped in silence: what is missing, extra or of another size is listed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from xmae_jax.models.t5 import T5Config
from xmae_jax.models.weight_files import WeightFile, read_weights

_BLOCK = "decoder.block.{}.layer."
_RELATIVE = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_COPIES = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
_LEFT_OUT = re.compile(
    r"encoder\..*|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
"""The latter is in T5's first files, and no one reads it."""


class _Name(NamedTuple):
    """A parameter of our blocks, and the matrices that are joined to it along a new axis."""

    ours: str
    theirs: tuple[str, ...]


_NAMES = (
    _Name("norm1/scale", ("0.layer_norm",)),
    _Name("attention/qkv/kernel", tuple(f"0.SelfAttention.{n}" for n in "qkv")),
    _Name("attention/out/kernel", ("0.SelfAttention.o",)),
    _Name("norm2/scale", ("1.layer_norm",)),
    _Name("cross/q/kernel", ("1.EncDecAttention.q",)),
    _Name("cross/kv/kernel", tuple(f"1.EncDecAttention.{n}" for n in "kv")),
    _Name("cross/out/kernel", ("1.EncDecAttention.o",)),
    _Name("norm3/scale", ("2.layer_norm",)),
    _Name("mlp/down/kernel", ("2.DenseReluDense.wo",)),
)
_MLP = {
    True: _Name("mlp/gate_up/kernel", ("2.DenseReluDense.wi_0", "2.DenseReluDense.wi_1")),
    False: _Name("mlp/up/kernel", ("2.DenseReluDense.wi",)),
}


@dataclasses.dataclass(frozen=True)
class ForeignT5:
    """A file's decoder under our names."""

    path: Path
    config: T5Config
    params: dict[str, np.ndarray]
    """float32, by path from the decoder on."""
    notes: list[str]
    """What was left out and assumed, for the user."""


def read_t5(path: Path) -> ForeignT5:
    """Read a T5 decoder; ValueError names what is missing, extra or damaged."""
    file = read_weights(path)
    arrays = dict(file.arrays)
    _drop_copies(file, arrays)
    gated = any(".wi_0." in name for name in arrays)
    depth = _depth(arrays)
    fixed = ["shared.weight", "decoder.final_layer_norm.weight", _RELATIVE]
    if not _tied(file) and "scale_decoder_outputs" not in file.config:
        fixed.append("lm_head.weight")
    names = [*_NAMES, _MLP[gated]]
    keys = [
        f"{_BLOCK}{key}.weight".format(i) for i in range(depth) for n in names for key in n.theirs
    ]
    missing = [key for key in fixed + keys if key not in arrays]
    left = [n for n in arrays if n not in {*fixed, *keys, "lm_head.weight"}]
    out = [n for n in left if _LEFT_OUT.fullmatch(n)]
    extra = sorted(set(left) - set(out))
    if missing or extra or not depth:
        listed = [f"missing {n}" for n in missing] + [f"extra {n}" for n in extra]
        raise ValueError(f"{file.path} is no T5 with a decoder: {'; '.join(listed)}")
    ranks = {key: 1 if "layer_norm" in key else 2 for key in fixed + keys}
    wrong = [n for n, axes in ranks.items() if arrays[n].ndim != axes or not arrays[n].size]
    if wrong:
        listed = [f"{n} {arrays[n].shape} is to have {ranks[n]} axes of some length" for n in wrong]
        raise ValueError(f"{file.path}: {'; '.join(listed)}")
    config, notes = _config(file, arrays, depth=depth, gated=gated)
    params = {f"blocks/{name.ours}": _joined(name, arrays, config) for name in names}
    params |= _outer(arrays, config)
    notes += [f"left out: the encoder, {len(out)} arrays"] * bool(out)
    return ForeignT5(
        path=file.path,
        config=config,
        params={name: np.ascontiguousarray(x, np.float32) for name, x in params.items()},
        notes=notes,
    )


def check_t5(foreign: ForeignT5, config: T5Config) -> None:
    """Raise ValueError with all settings in which a file differs from a decoder of `config`."""
    here = dataclasses.asdict(dataclasses.replace(config, dropout=foreign.config.dropout))
    wrong = [
        f"{name} is {here[name]!r} here and {value!r} there"
        for name, value in dataclasses.asdict(foreign.config).items()
        if here[name] != value
    ]
    if wrong:
        raise ValueError(f"{foreign.path} does not fit:\n  " + "\n  ".join(wrong))


def _drop_copies(file: WeightFile, arrays: dict[str, np.ndarray]) -> None:
    """Take out copies of the shared embedding; ValueError if one is no copy."""
    found = [name for name in _COPIES if name in arrays]
    for name in found:
        copy = arrays.pop(name)
        if not np.array_equal(copy, arrays.setdefault("shared.weight", copy)):
            raise ValueError(f"{file.path}: {name} is not the shared.weight")


def _depth(arrays: Mapping[str, np.ndarray]) -> int:
    # Not the largest number: a file could claim any, and a gap is listed as missing and extra.
    found = [re.match(r"decoder\.block\.(\d+)\.", name) for name in arrays]
    return len({m[1] for m in found if m})


def _tied(file: WeightFile) -> bool:
    return file.config.get("tie_word_embeddings") is not False


def _config(
    file: WeightFile, arrays: Mapping[str, np.ndarray], *, depth: int, gated: bool
) -> tuple[T5Config, list[str]]:
    """Read the settings off shapes and, what they do not tell, off config.json."""
    told, notes = file.config, []
    if not told:
        notes = ["no config.json: max_distance 128, norm_eps 1e-6 and T5's activation are assumed"]
    wanted = "gated-gelu" if gated else "relu"
    activation = told.get("feed_forward_proj", wanted)
    if activation != wanted:
        raise ValueError(
            f"{file.path}: feed_forward_proj is {activation!r}, and its arrays are"
            f" {'' if gated else 'not '}gated; 'relu' and 'gated-gelu' are known"
        )
    # Files of other versions of the library tell by the one or by the other.
    scaled = told.get("scale_decoder_outputs", _tied(file))
    head = arrays.get("lm_head.weight")
    own_head = head is not None and not np.array_equal(head, arrays["shared.weight"])
    if scaled and own_head:
        if told:
            raise ValueError(f"{file.path}: lm_head.weight is not the shared.weight, and is scaled")
        scaled = False
    q = arrays[f"{_BLOCK}0.SelfAttention.q.weight".format(0)]
    buckets, heads = arrays[_RELATIVE].shape
    up = arrays[f"{_BLOCK}{_MLP[gated].theirs[0]}.weight".format(0)]
    vocab, width = arrays["shared.weight"].shape
    config = T5Config(
        vocab=vocab,
        width=width,
        depth=depth,
        heads=heads,
        head_width=len(q) // heads,
        hidden=len(up),
        gated=gated,
        tied=bool(scaled),
        buckets=buckets,
        max_distance=int(_number(file, "relative_attention_max_distance", 128.0)),
        norm_eps=_number(file, "layer_norm_epsilon", 1e-6),
    )
    return config, notes


def _number(file: WeightFile, key: str, usual: float) -> float:
    """Read a positive setting of config.json."""
    found = file.config.get(key, usual)
    if type(found) not in (int, float) or not 0 < found < 1e9:
        raise ValueError(f"{file.path.parent / 'config.json'}: {key} is {found!r}")
    return float(found)


def _outer(arrays: Mapping[str, np.ndarray], config: T5Config) -> dict[str, np.ndarray]:
    """Return the parameters that are in no block."""
    params = {"embedding": arrays["shared.weight"], "relative_bias": arrays[_RELATIVE]}
    sized = {"norm/scale": ("decoder.final_layer_norm.weight", (config.width,))}
    if not config.tied:
        head = "lm_head.weight" if "lm_head.weight" in arrays else "shared.weight"
        sized["out/kernel"] = (head, (config.vocab, config.width))
    for ours, (name, shape) in sized.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} is to be {shape}, and is {arrays[name].shape}")
        params[ours] = arrays[name].T
    return params


def _joined(
    name: _Name, arrays: Mapping[str, np.ndarray], config: T5Config
) -> Float[np.ndarray, "l ..."]:
    """Stack a parameter of all blocks, with matrices [in out] and heads apart."""
    c = config
    wanted: dict[str, tuple[int, ...]] = {
        "norm1/scale": (c.width,),
        "norm2/scale": (c.width,),
        "norm3/scale": (c.width,),
        "attention/qkv/kernel": (c.width, 3, c.heads, c.head_width),
        "attention/out/kernel": (c.heads * c.head_width, c.width),
        "cross/q/kernel": (c.width, c.heads, c.head_width),
        "cross/kv/kernel": (c.width, 2, c.heads, c.head_width),
        "cross/out/kernel": (c.heads * c.head_width, c.width),
        "mlp/gate_up/kernel": (c.width, 2, c.hidden),
        "mlp/up/kernel": (c.width, c.hidden),
        "mlp/down/kernel": (c.hidden, c.width),
    }
    shape, rows = wanted[name.ours], []
    for i in range(c.depth):
        parts = [arrays[f"{_BLOCK}{key}.weight".format(i)].T for key in name.theirs]
        joined: Any = np.stack(parts, axis=1) if len(parts) > 1 else parts[0]
        if joined.size != np.prod(shape) or joined.shape[0] != shape[0]:
            shapes = [part.T.shape for part in parts]
            raise ValueError(f"blocks/{name.ours} is to be {shape}, and {name.theirs} are {shapes}")
        rows.append(joined.reshape(shape))
    return np.stack(rows)
