"""Linear and attentive heads against NumPy; what is not valid does not count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.heads.made import BFLOAT16, WIDTH, as_function, features_of, flat, head_of, spoiled
from xmae_jax.config import ConfigError, build
from xmae_jax.heads import HeadConfig
from xmae_jax.heads.attentive import AttentiveConfig
from xmae_jax.heads.linear import LinearConfig

VALID = np.array([[1] * 8, [1, 1, 1, 0, 1, 1, 1, 0], [1] + [0] * 7], bool)
ATTENTIVE = AttentiveConfig("attentive", layers=2, width=16, heads=4)


def joined(features, layers):
    """Return (CLS [b ld], patches [b k ld]) of the last blocks in float64, oldest first."""
    blocks = features.layers[-layers:]
    return tuple(
        np.concatenate([np.asarray(part, np.float64) for part in parts], axis=-1)
        for parts in zip(*blocks, strict=True)
    )


def average(patches, valid):
    valid = np.ones(patches.shape[:2], bool) if valid is None else valid
    return np.stack([row[seen].mean(0) for row, seen in zip(patches, valid, strict=True)])


def largest(patches, valid):
    valid = np.ones(patches.shape[:2], bool) if valid is None else valid
    return np.stack([row[seen].max(0) for row, seen in zip(patches, valid, strict=True)])


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
@pytest.mark.parametrize("pool", ["cls", "mean", "cls_mean", "mean_max"])
@pytest.mark.parametrize("layers", [1, 2])
def test_linear_against_numpy(pool, layers, valid):
    features = features_of(valid=valid)
    if valid is not None:
        features = spoiled(features)
    apply, params = as_function(head_of(LinearConfig("linear", pool, layers), 5))
    cls, patches = joined(features, layers)
    pooled = {
        "cls": cls,
        "mean": average(patches, valid),
        "cls_mean": np.concatenate([cls, average(patches[..., -WIDTH:], valid)], axis=-1),
        "mean_max": np.concatenate([average(patches, valid), largest(patches, valid)], axis=-1),
    }[pool]
    out = params["out"]
    want = pooled @ np.asarray(out["kernel"], np.float64) + np.asarray(out["bias"])
    np.testing.assert_allclose(apply(params, features)["logits"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_attentive_against_numpy(valid):
    features = features_of(valid=valid)
    if valid is not None:
        features = spoiled(features)
    apply, params = as_function(head_of(ATTENTIVE, 5))
    p = {name: np.asarray(x, np.float64) for name, x in flat(params).items()}
    _, patches = joined(features, 2)
    got = apply(params, features)
    assert got["attention"].shape == (3, 4, 5, 8)
    for row, x in enumerate(patches):
        seen = np.ones(8, bool) if valid is None else valid[row]
        pooled = []
        for h in range(4):
            keys = x[seen] @ p["key/kernel"][:, h] + p["key/bias"][h]
            values = x[seen] @ p["value/kernel"][:, h] + p["value/bias"][h]
            weights = np.exp(keys @ p["query"][0, h] / 2.0)  # sqrt(16 / 4)
            weights /= weights.sum()
            pooled.append(weights @ values)
            for finding in range(5):
                np.testing.assert_allclose(
                    got["attention"][row, h, finding, seen], weights, rtol=1e-4, atol=1e-6
                )
        y = np.concatenate(pooled)
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-6) * p["norm/scale"] + p["norm/bias"]
        want = y @ p["out/kernel"] + p["out/bias"]
        np.testing.assert_allclose(got["logits"][row], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [LinearConfig("linear", "cls_mean", 2), LinearConfig("linear", "mean_max", 2), ATTENTIVE],
)
def test_a_row_without_valid_patches_is_finite(config):
    apply, params = as_function(head_of(config, 2))
    out = apply(params, spoiled(features_of(valid=np.zeros((3, 8), bool))))
    assert all(np.all(np.isfinite(x)) for x in out.values())


def test_bfloat16_gives_float32():
    features = features_of()
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features.layers)
    for config in (LinearConfig("linear", "cls_mean", 2), ATTENTIVE):
        apply, params = as_function(head_of(config, 3))
        want = apply(params, features)["logits"]
        apply, params = as_function(head_of(config, 3, dtype=BFLOAT16))
        got = apply(params, features._replace(layers=narrow))["logits"]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=0.05)


@dataclasses.dataclass(frozen=True)
class Holder:
    head: HeadConfig


def test_a_config_names_a_head_by_its_kind():
    tree = {"kind": "linear", "pool": "cls", "layers": 4}
    assert build(Holder, {"head": tree}).head == LinearConfig("linear", "cls", 4)
    attentive = {"kind": "attentive", "layers": 1, "width": 16, "heads": 3}
    for wrong, told in (
        ({**tree, "kind": "dense"}, "config.head.*'linear', 'attentive', 'query'"),
        ({**tree, "layer": 1}, "unknown key config.head.layer;"),
        ({**tree, "layers": 0}, "layers must be positive"),
        (attentive, "width 16 is no multiple of heads 3"),
    ):
        with pytest.raises(ConfigError, match=told):
            build(Holder, {"head": wrong})
