"""GLoRI and ML-Decoder: counts, a NumPy forward from the definition, and who depends on what."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from tests.heads.made import (
    BFLOAT16,
    FLOAT32,
    WIDTH,
    as_function,
    features_of,
    flat,
    head_of,
    nested,
    params_of,
    rows_of,
    spoiled,
)
from tests.objectives.test_supervised import small
from xmae_jax import sharding
from xmae_jax.heads import make_head
from xmae_jax.heads.query import QueryConfig
from xmae_jax.heads.text import read_embeddings
from xmae_jax.models.layers import dropout
from xmae_jax.optim import NO_DECAY

GLORI = QueryConfig(
    kind="query",
    queries="fixed",
    text=None,
    groups=None,
    layers=4,
    cls_skip=True,
    width=768,
    heads=8,
    hidden=2048,
    dropout=0.1,
)
SMALL = dataclasses.replace(GLORI, layers=2, width=16, heads=4, hidden=24)
ML_DECODER = dataclasses.replace(SMALL, groups=3, layers=1, cls_skip=False)
VALID = np.array([[1] * 8, [1, 1, 1, 0, 1, 1, 1, 0], [1] + [0] * 7], bool)


def definition(params, config, features, *, findings):
    """Run the decoder in float64 from facts, a row, a head and a finding at a time."""
    p = {name: np.asarray(value, np.float64) for name, value in flat(params).items()}
    blocks = features.layers[-config.layers :]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * p[f"{name}/scale"] + p[f"{name}/bias"]

    logits, maps = [], []
    for row in range(len(features.ids)):
        cls = np.concatenate([np.asarray(c[row], np.float64) for c, _ in blocks])
        patches = np.concatenate([np.asarray(x[row], np.float64) for _, x in blocks], axis=-1)
        seen = np.ones(len(patches), bool) if features.valid is None else features.valid[row]
        memory = np.maximum(patches[seen] @ p["memory/kernel"] + p["memory/bias"], 0)
        t = norm(p["queries"] + p["queries"], "norm1")
        read, attention = [], []
        for h in range(config.heads):
            q, k, v = (
                x @ p[f"attention/{n}/kernel"][:, h] + p[f"attention/{n}/bias"][h]
                for n, x in (("q", t), ("k", memory), ("v", memory))
            )
            scores = np.exp(q @ k.T / np.sqrt(config.width / config.heads))
            weights = scores / scores.sum(-1, keepdims=True)
            attention.append(np.zeros((len(t), len(seen))))
            attention[-1][:, seen] = weights
            read.append(weights @ v)
        read = np.concatenate(read, axis=-1)
        t = norm(t + read @ p["attention/out/kernel"] + p["attention/out/bias"], "norm2")
        hidden = np.maximum(t @ p["up/kernel"] + p["up/bias"], 0)
        t = norm(t + hidden @ p["down/kernel"] + p["down/bias"], "norm3")
        factor = int(np.ceil(findings / len(t)))
        kernel = p["readout/kernel"]
        assert kernel.shape[2] == factor
        for c in range(findings):
            h = t[c // factor]
            h = np.concatenate([cls, h]) if config.cls_skip else h
            logits.append(h @ kernel[c // factor, :, c % factor] + p["readout/bias"][c])
        maps.append(np.stack(attention)[:, [c // factor for c in range(findings)]])
    return np.reshape(logits, (-1, findings)), np.stack(maps)


@pytest.mark.parametrize(("skip", "count"), [(True, 8_856_616), (False, 8_692_776)])
def test_glori_has_the_published_parameters(skip, count):
    config = dataclasses.replace(GLORI, cls_skip=skip)

    def init():
        made = make_head(config, width=1024, findings=40, dtype=FLOAT32, rngs=nnx.Rngs(0))
        return params_of(made)

    shapes = flat(jax.eval_shape(init))
    assert shapes.pop("queries").shape == (40, 768)
    assert sum(np.prod(x.shape) for x in shapes.values()) == count


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("config", "findings"),
    [
        (SMALL, 5),
        (SMALL, 1),
        (dataclasses.replace(SMALL, cls_skip=False), 5),
        (ML_DECODER, 6),  # two findings to each group
        (ML_DECODER, 5),  # the last group has one
        (ML_DECODER, 2),  # fewer findings than groups: a query for each
        (dataclasses.replace(ML_DECODER, groups=4), 5),  # ceil(5 / 4): the fourth group has none
    ],
)
def test_forward_against_the_definition(config, findings, valid):
    (apply, params), features = as_function(head_of(config, findings)), features_of(valid=valid)
    # So short that q + q is not q to the norm, whose epsilon counts.
    params["queries"] *= 0.01
    got = apply(params, features)
    logits, attention = definition(params, config, features, findings=findings)
    np.testing.assert_allclose(got["logits"], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["attention"], attention, atol=1e-6)
    np.testing.assert_allclose(got["attention"].sum(-1), 1.0, atol=1e-5)


def test_a_finding_depends_on_its_own_query_and_readout_alone():
    apply, params = as_function(head_of(SMALL, 4))
    features, paths = features_of(), flat(params)
    before = np.asarray(apply(params, features)["logits"])
    for name in ("queries", "readout/kernel", "readout/bias"):
        # Of a query the direction counts, not the length: it is normed.
        row = paths[name][2] + jnp.arange(paths[name][2].size).reshape(paths[name][2].shape) + 1.0
        changed = nested(paths | {name: paths[name].at[2].set(row)})
        after = np.asarray(apply(changed, features)["logits"])
        assert np.all(np.abs(after - before)[:, 2] > 1e-3), name
        np.testing.assert_array_equal(np.delete(after, 2, 1), np.delete(before, 2, 1))


def test_fixed_queries_have_no_gradient_and_learned_ones_do():
    features = features_of()

    def gradient(config, **more):
        apply, params = as_function(head_of(config, 4, **more))
        return flat(jax.jit(jax.grad(lambda p: apply(p, features)["logits"].sum()))(params))

    fixed = gradient(SMALL)
    assert not np.any(fixed.pop("queries"))
    # Keys' biases move all scores alike.
    assert all(np.any(g) for name, g in fixed.items() if name != "attention/k/bias")
    assert np.any(gradient(dataclasses.replace(SMALL, queries="learned"))["learned_queries"])


def test_what_is_not_valid_reaches_no_value_and_no_gradient():
    apply, params = as_function(head_of(SMALL, 4))
    features = features_of(valid=VALID)
    bad = spoiled(features)

    def total(p, features):
        out = apply(p, features)
        return out["logits"].sum(), out

    gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
    clean, dirty = gradient(params, features), gradient(params, bad)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not np.any(np.asarray(dirty[0][1]["attention"])[2, ..., 1:])


def test_a_row_without_valid_patches_is_finite():
    apply, params = as_function(head_of(SMALL, 4))
    out = apply(params, spoiled(features_of(valid=np.zeros((3, 8), bool))))
    assert all(np.all(np.isfinite(x)) for x in out.values())


def test_bfloat16_gives_float32_close_by():
    features = features_of()
    heads = (head_of(SMALL, 4, dtype=dtype) for dtype in (FLOAT32, BFLOAT16))
    wide, narrow = (apply(params, features) for apply, params in map(as_function, heads))
    for name in ("logits", "attention"):
        assert narrow[name].dtype == jnp.float32
        np.testing.assert_allclose(narrow[name], wide[name], atol=0.05)
        assert np.any(narrow[name] != wide[name])


def test_dropout_is_a_rows_own():
    (apply, params), features = as_function(head_of(SMALL, 4)), features_of(8)
    keys = jax.random.split(jax.random.key(3), 8)

    def run(features, keys):
        return np.asarray(apply(params, features, keys)["logits"])

    together = run(features, keys)
    order = np.array([5, 0, 7, 2, 1, 3, 6, 4])

    moved = run(rows_of(features, order), keys[order])
    np.testing.assert_allclose(moved, together[order], rtol=1e-5, atol=1e-5)
    alone = run(rows_of(features, order[:1]), keys[order[:1]])
    np.testing.assert_allclose(alone, together[order[:1]], rtol=1e-5, atol=1e-5)

    mesh = sharding.make_mesh(data=4, fsdp=2)
    placed = sharding.batch_sharding(mesh)
    split = features._replace(layers=jax.device_put(features.layers, placed))
    np.testing.assert_allclose(run(split, jax.device_put(keys, placed)), together, atol=1e-5)

    other = run(features, jax.random.split(jax.random.key(4), 8))
    assert np.all(np.abs(together - other).max(1) > 1e-3)


def test_dropout_keeps_the_mean_and_draws_anew_at_each_site():
    keys = jax.random.split(jax.random.key(0), 4)
    ones = jnp.ones((4, 5000))
    first, second = (np.asarray(dropout(ones, keys, rate=0.1, site=site)) for site in (0, 1))
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.9)}
    np.testing.assert_allclose(first.mean(1), 1.0, atol=0.02)
    assert np.mean((first == 0) & (second == 0)) < 0.02  # 0.01 by chance
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(dropout(ones, None, rate=0.1, site=0), ones)


def test_parameters_start_as_pytorch_starts_them():
    config = dataclasses.replace(GLORI, layers=1)
    head = make_head(config, width=1024, findings=40, dtype=FLOAT32, rngs=nnx.Rngs(0))
    p = flat(params_of(head))
    assert np.std(p["queries"]) == pytest.approx(1.0, rel=0.02)
    assert np.std(p["readout/kernel"]) == pytest.approx((2 / (1024 + 768 + 40)) ** 0.5, rel=0.02)
    bounds = {"memory": 1024**-0.5, "up": 768**-0.5, "down": 2048**-0.5}
    for name, bound in bounds.items():
        for part in ("kernel", "bias"):
            assert np.abs(p[f"{name}/{part}"]).max() == pytest.approx(bound, rel=0.02)
    # One matrix [3 * 768, 768] in PyTorch: sqrt(6 / (768 + 3 * 768)).
    for name in "qkv":
        assert np.abs(p[f"attention/{name}/kernel"]).max() == pytest.approx(
            (1.5 / 768) ** 0.5, 0.01
        )
        assert not np.any(p[f"attention/{name}/bias"])
    assert np.abs(p["attention/out/kernel"]).max() == pytest.approx(768**-0.5, rel=0.01)
    assert not np.any(p["attention/out/bias"]) and not np.any(p["readout/bias"])


@pytest.mark.parametrize("queries", ["fixed", "learned"])
def test_every_parameter_has_a_place_and_what_is_fixed_does_not_decay(queries):
    params = params_of(head_of(dataclasses.replace(SMALL, queries=queries), 4))
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    placed = sharding.state_shardings({"params": {"head": params}}, mesh)
    assert flat(placed["params"]["head"]).keys() == flat(params).keys()
    decay = {name for name in flat(params) if not NO_DECAY.fullmatch(f"head/{name}")}
    kernels = {name for name in flat(params) if name.endswith("kernel")}
    assert decay == kernels | ({"learned_queries"} if queries == "learned" else set())


@pytest.fixture
def words(tmp_path):
    """Write embeddings of four findings; return (file, table by name)."""
    names = ("Edema", "Mass", "Hernia", "Nodule")
    table = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    file = tmp_path / "words.safetensors"
    metadata = {"findings": json.dumps(names)}
    safetensors.numpy.save_file({"embeddings": table}, file, metadata)
    return str(file), dict(zip(names, table, strict=True))


def test_text_queries_go_by_name_and_train_their_map_alone(words):
    file, table = words
    config = dataclasses.replace(SMALL, queries="text", text=file)
    names = ("Nodule", "Edema", "Mass")
    head = make_head(config, width=WIDTH, findings=3, dtype=FLOAT32, rngs=nnx.Rngs(0), names=names)
    np.testing.assert_array_equal(head.queries[...], np.stack([table[name] for name in names]))
    apply, params = as_function(head)
    features = features_of()
    gradient = jax.jit(jax.grad(lambda p: apply(p, features)["logits"].sum()))(params)
    assert not np.any(gradient["queries"]) and np.any(gradient["project"]["kernel"])
    # It is the decoder of fixed queries that are ReLU(W e + b).
    paths = flat(params)
    mapped = paths["queries"] @ paths.pop("project/kernel") + paths.pop("project/bias")[None]
    paths["queries"] = jnp.maximum(mapped, 0)
    want, _ = definition(nested(paths), config, features, findings=3)
    np.testing.assert_allclose(apply(params, features)["logits"], want, rtol=1e-5, atol=1e-5)


def test_an_objective_makes_text_queries_or_refuses_its_config(words):
    file, _ = words
    config = dataclasses.replace(SMALL, queries="text", text=file)
    shapes = jax.eval_shape(small(head=config, findings=("Mass", "Edema")).init, jax.random.key(0))
    assert shapes["head"]["queries"].shape == (2, 6)
    with pytest.raises(ValueError, match="words.safetensors has no embedding of Fibrosis"):
        small(head=config, findings=("Mass", "Fibrosis"))


def test_text_that_cannot_be_used_is_named(words, tmp_path):
    file, _ = words
    with pytest.raises(ValueError, match="words.safetensors has no embedding of Fibrosis"):
        read_embeddings(file, ("Edema", "Fibrosis"))
    other = tmp_path / "other.safetensors"
    for content in (b"", b"not safetensors"):
        other.write_bytes(content)
        with pytest.raises(ValueError, match="other.safetensors is no safetensors file"):
            read_embeddings(str(other), ("Edema",))
    with pytest.raises(ValueError, match="absent.safetensors is no"):
        read_embeddings(str(tmp_path / "absent.safetensors"), ("Edema",))
    table = {"embeddings": np.zeros((2, 3), np.float32)}
    for metadata, told in (
        (None, "JSON list 'findings'"),
        ({"findings": "Edema"}, "JSON list 'findings'"),
        ({"findings": '["Edema"]'}, "a row for each"),
    ):
        safetensors.numpy.save_file(table, other, metadata)
        with pytest.raises(ValueError, match=told):
            read_embeddings(str(other), ("Edema",))
    config = dataclasses.replace(SMALL, queries="text", text=file)
    with pytest.raises(ValueError, match="need as many names"):
        make_head(config, width=WIDTH, findings=2, dtype=FLOAT32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 18}, "width 18 is no multiple of heads 4"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"groups": 0}, "groups must be positive"),
        ({"layers": 0}, "layers, hidden"),
        ({"queries": "text"}, "belong together"),
        ({"text": "words.safetensors"}, "belong together"),
        ({"queries": "text", "text": "words.safetensors", "groups": 2}, "groups is to be None"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(SMALL, **changes)


def test_more_blocks_than_the_encoder_gave():
    with pytest.raises(ValueError, match="reads 2 blocks, the encoder gave 1"):
        head_of(SMALL, 4)(features_of(layers=1))
