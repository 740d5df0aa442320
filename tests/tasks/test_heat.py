"""Maps of where a model looked, against sums written out, and over the film that they are of."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.objectives.test_supervised import batch_of, small
from xmae_jax import rng
from xmae_jax.attention import read_back
from xmae_jax.data.transforms import square_film
from xmae_jax.digest import flatten, nested
from xmae_jax.heads.attentive import AttentiveConfig
from xmae_jax.heads.linear import LinearConfig
from xmae_jax.heads.query import QueryConfig
from xmae_jax.models.vit import EncoderConfig
from xmae_jax.objectives.mae import normalise
from xmae_jax.tasks import heat, overlay

ENCODER = EncoderConfig(
    width=8, depth=3, heads=2, patch_size=4, stem="linear", base_grid=4, positions="learned",
    resample="cubic", registers=2, layer_scale=0.5, mlp="swiglu", norm_eps=1e-6,
)  # fmt: skip
QUERY = QueryConfig(
    kind="query", queries="learned", text=None, groups=None, layers=2, cls_skip=True, width=8,
    heads=2, hidden=8, dropout=0.0,
)  # fmt: skip
SCALE = overlay.Scale("unit")
ATTENTIVE = AttentiveConfig(kind="attentive", layers=1, width=8, heads=2)


def linear(pool, layers=1):
    return LinearConfig(kind="linear", pool=pool, layers=layers)


def made(head, *, seed=0):
    """Make an objective, its parameters with noise on them, a batch and chosen findings."""
    objective = small(head=head, encoder=ENCODER)
    draw = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: x + 0.3 * draw.standard_normal(x.shape, np.float32),
        objective.init(rng.key(seed, "init")),
    )
    chosen = jnp.asarray(draw.integers(0, 3, (4, 2)), jnp.int32)
    return objective, params, {**batch_of(4), "chosen": chosen}


def mapped(head, method):
    objective, params, batch = made(head)
    fn = jax.jit(heat.heat_of(objective, method))
    found = fn(params, {}, {}, batch, rng.key(0, "eval"))["heat"]
    assert found.shape == (4, 2, 16) and found.min() >= 0
    return np.asarray(found), objective.model(params, {}), batch


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention_maps(model, stream):
    """Write out each block's map, heads averaged, in float64."""
    kernel = np.float64(model.encoder.blocks.attention.qkv.kernel[...])  # l d 3 heads hd
    bias = np.float64(model.encoder.blocks.attention.qkv.bias[...])
    scale, shift = (
        np.float64(p[...])
        for p in (model.encoder.blocks.norm1.scale, model.encoder.blocks.norm1.bias)
    )
    for layer in range(len(kernel)):
        x = np.float64(stream[layer])
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        q, k, _ = (
            np.einsum("bnd,dshe->sbhne", x * scale[layer] + shift[layer], kernel[layer])
            + bias[layer][:, None, :, None]
        )
        yield softmax(np.einsum("bhne,bhme->bhnm", q, k) / 2).mean(1)


def test_the_stream_ends_in_what_the_encoder_gives():
    _, model, batch = mapped(linear("cls"), "gradient")
    image = normalise(batch["image"])
    stream = model.encoder.stream(image)
    assert stream.shape == (4, 4, 1 + 2 + 16, 8)
    whole = model.encoder(image, last=3)
    ends = model.encoder.features(stream[1:], whole.ids, whole.grid)
    for one, other in zip(whole.layers, ends.layers, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("head", [*map(linear, ("cls", "mean", "cls_mean", "mean_max")), QUERY])
def test_rollout_is_the_product_of_all_maps(head):
    found, model, batch = mapped(head, "rollout")
    stream, valid = model.encoder.stream(normalise(batch["image"])), np.asarray(batch["valid"])
    product = np.eye(19)[None].repeat(4, 0)
    for one in attention_maps(model, stream):
        product = (one + np.eye(19)) / 2 @ product
    start = np.zeros((4, 2, 19))
    if head is QUERY:
        weights = np.asarray(model.head(model.features(batch))["attention"]).mean(1)
        start[:, :, 3:] = np.take_along_axis(weights, np.asarray(batch["chosen"])[..., None], 1)
    else:
        of_cls = {"cls": 1, "cls_mean": 0.5}.get(head.pool, 0)
        start[:, :, 0] = of_cls
        start[:, :, 3:] = (1 - of_cls) * (valid / valid.sum(1, keepdims=True))[:, None]
    expected = (start @ product)[:, :, 3:] * valid[:, None]
    expected *= (valid.sum(1)[:, None] / expected.sum(-1))[:, :, None]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_weights_are_carried_back_in_blocks():
    draw = np.random.default_rng(0)
    q, k = (jnp.asarray(draw.normal(size=(2, n, 3, 4)), jnp.float32) for n in (300, 70))
    rows = jnp.asarray(draw.uniform(size=(2, 5, 300)), jnp.float32)
    maps = softmax(np.einsum("bqhe,bkhe->bhqk", q, k) / 2).mean(1)
    np.testing.assert_allclose(read_back(rows, q, k), rows @ maps, rtol=1e-4)


def test_gradients_of_a_linear_head_over_patches_are_shares_of_the_logit():
    found, model, batch = mapped(linear("mean", 2), "gradient")
    valid = np.asarray(batch["valid"])[:, :, None]
    patches = np.concatenate([p for _, p in model.features(batch).layers], -1) * valid
    share = (patches - patches.sum(1, keepdims=True) / valid.sum(1, keepdims=True)) * valid
    kernel = np.asarray(model.head.out.kernel[...])[:, np.asarray(batch["chosen"])]  # d b m
    expected = np.einsum("bnd,dbm->bmn", share / valid.sum(1, keepdims=True), kernel)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "cls_mean"])
def test_gradients_of_a_head_that_pools_cls_go_through_the_last_block(pool):
    found, model, batch = mapped(linear(pool), "gradient")
    x = model.encoder.stream(normalise(batch["image"]))[-2]
    last = heat.block_of(model.encoder.blocks, 2)

    def logit(x):
        features = heat._features(model, last(x)[None], batch)
        picked = jnp.take_along_axis(model.head(features)["logits"], batch["chosen"][:, :1], 1)
        return picked.sum()

    valid = np.asarray(batch["valid"])[:, :, None]
    patches, slope = np.asarray(x)[:, 3:], np.asarray(jax.grad(logit)(x))[:, 3:]
    mean = (patches * valid).sum(1, keepdims=True) / valid.sum(1, keepdims=True)
    expected = np.maximum((slope * (patches - mean)).sum(-1), 0) * valid[:, :, 0]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-3, atol=1e-6)


def test_attention_is_the_heads_own_and_even_is_one():
    found, model, batch = mapped(QUERY, "attention")
    valid = np.asarray(batch["valid"])
    np.testing.assert_allclose(found.sum(-1), valid.sum(1)[:, None].repeat(2, 1), rtol=1e-4)
    assert (found.swapaxes(1, 2)[~valid] == 0).all()
    weights = np.asarray(model.head(model.features(batch))["attention"]).mean(1)
    c = int(batch["chosen"][1, 1])
    np.testing.assert_allclose(found[1, 1], weights[1, c] * valid[1].sum(), rtol=1e-5)


@pytest.mark.parametrize("head", [linear("cls"), linear("mean"), QUERY])
def test_even_attention_is_one_on_the_film_and_none_on_padding(head):
    objective, params, batch = made(head)
    params = {k: jnp.zeros_like(v) if "attention/qkv" in k or k.startswith("head/") else v
              for k, v in flatten(params).items()}  # fmt: skip
    fn = heat.heat_of(objective, "rollout")
    found = np.asarray(fn(nested(params), {}, {}, batch, rng.key(0, "eval"))["heat"])
    valid = np.asarray(batch["valid"])
    assert not valid.all()
    np.testing.assert_allclose(found, valid[:, None].repeat(2, 1), rtol=1e-5)


@pytest.mark.parametrize("method", ["gradient", "rollout"])
def test_a_scale_is_the_films_own_where_padding_is_attended_to(method):
    found, _, batch = mapped(linear("cls"), method)
    valid = np.asarray(batch["valid"])
    assert not valid.all() and (found.swapaxes(1, 2)[~valid] == 0).all()


@pytest.mark.parametrize(
    "head", [QUERY, dataclasses.replace(QUERY, groups=2), ATTENTIVE, linear("mean"), linear("cls")]
)
def test_the_default_tells_findings_apart(head):
    objective, params, batch = made(head)
    method = heat.default_method(objective)
    assert heat.shared_by(objective, method) == 1
    batch["chosen"] = jnp.tile(jnp.array([[0, 1]], jnp.int32), (4, 1))
    found = heat.heat_of(objective, method)(params, {}, {}, batch, rng.key(0, "eval"))["heat"]
    assert not np.allclose(found[:, 0], found[:, 1])


def test_a_map_is_shared_where_a_query_answers_for_several_findings():
    grouped = dataclasses.replace(QUERY, groups=2)
    objective, params, batch = made(grouped)
    assert heat.shared_by(objective, "attention") == heat.shared_by(objective, "rollout") == 2
    batch["chosen"] = jnp.tile(jnp.array([[0, 1]], jnp.int32), (4, 1))
    fn = heat.heat_of(objective, "attention")
    found = fn(params, {}, {}, batch, rng.key(0, "eval"))["heat"]
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_a_head_without_a_map_of_its_own_is_told():
    objective, _, _ = made(linear("mean"))
    with pytest.raises(ValueError, match="'attention': a linear head has none"):
        heat.heat_of(objective, "attention")


@pytest.mark.parametrize("shape", [(300, 200), (120, 400), (64, 64)])
@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_a_map_lies_where_its_patches_were(shape, fit):
    film = np.zeros(shape, np.uint8)
    y, x = int(shape[0] * 0.7), int(shape[1] * 0.3)
    film[y - 3 : y + 3, x - 3 : x + 3] = 255
    square, box = square_film(film, size=128, fit=fit)
    bright = square.reshape(16, 8, 16, 8).mean((1, 3))
    placed = overlay.Placed(shape, box, 128)
    found = overlay.over_film(bright.astype(np.float32), placed)
    assert found.shape == shape
    inside = found * np.mgrid[: shape[0], : shape[1]]
    centre = inside.sum((1, 2)) / found.sum()
    cell = 8 / 128 * max(shape) if fit == "pad" else 8 / 128 * np.array(shape)
    assert (abs(centre - (y, x)) < 0.6 * cell).all()
    even = overlay.over_film(np.ones((16, 16), np.float32), placed)
    np.testing.assert_allclose(even, 1, rtol=1e-5)


def test_padding_is_not_mixed_into_the_film():
    outside = np.full((8, 8), 9.0, np.float32)
    outside[:, 2:6] = 1.0  # a film of 32 of 64 columns
    placed = overlay.Placed((500, 250), (0, 16, 64, 48), 64)
    np.testing.assert_allclose(overlay.over_film(outside, placed), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(90, 70), (640, 900)])
def test_the_film_keeps_its_size_and_what_is_cold_its_grey(shape):
    film = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[:, 2:] = 1.0
    placed = overlay.Placed(shape, (0, 0, 64, 64), 64)
    data = overlay.draw(film, values, placed, lines=("one", "two" * 99), scale=SCALE)
    page = np.asarray(Image.open(io.BytesIO(data)))
    assert page.shape[1] == max(shape[1], 480) and page.shape[0] > shape[0]
    part = film[:, : shape[1] // 4]  # where the map is 0
    rows = [y for y in range(page.shape[0] - shape[0])
            if (page[y : y + shape[0], : part.shape[1], 0] == part).all()]  # fmt: skip
    (top,) = rows
    seen = page[top : top + shape[0], : shape[1]]
    assert (seen[:, : part.shape[1]] == part[:, :, None]).all()
    assert (seen[:, -shape[1] // 4 :, 0] > seen[:, -shape[1] // 4 :, 2]).all()  # yellow


def test_nothing_is_drawn_where_there_is_nothing():
    film = np.full((500, 500), 77, np.uint8)
    placed = overlay.Placed(film.shape, (0, 0, 64, 64), 64)
    data = overlay.draw(film, np.zeros((4, 4), np.float32), placed, lines=("a",), scale=SCALE)
    page = np.asarray(Image.open(io.BytesIO(data)))
    assert (page == 77).all(-1).sum() >= 500 * 500


def test_even_attention_has_no_colour_and_nearly_even_little():
    film, placed = np.full((500, 500), 77, np.uint8), overlay.Placed((500, 500), (0, 0, 64, 64), 64)
    values = np.ones((4, 4), np.float32)
    values[:, 3] = 1.01
    data = overlay.draw(film, values, placed, lines=("a",), scale=heat.SCALES["attention"])
    page = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    rows = np.flatnonzero((page[:, 0] == 77).all(-1))
    part = page[rows[0] : rows[0] + 500, :500]
    assert (part[:, :250] == 77).all() and 0 < abs(part - 77).max() <= 4
