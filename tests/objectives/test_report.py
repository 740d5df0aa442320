"""Reports: what is learnt of which token, and what of a study without films or text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_encoder
from xmae_jax import rng, sharding
from xmae_jax.digest import flatten
from xmae_jax.heads.report import ReportHeadConfig, ResamplerConfig
from xmae_jax.models.generate import GenerateConfig
from xmae_jax.models.t5 import T5Config
from xmae_jax.objectives.report import Report, joined
from xmae_jax.optim import OptimConfig, Optimizer
from xmae_jax.step import gradient, init_state
from xmae_jax.typing import Objective

KEY = rng.key(0, "train")
VOCAB = 20


def small(*, resampler=None, decoder=None, **changes) -> Report:
    sizes = dict(vocab=VOCAB, width=16, depth=2, heads=2, head_width=8, hidden=24)
    config = T5Config(**(sizes | dict(gated=True, tied=True) | (decoder or {})))
    fields = dict(
        image_size=16,
        compute_dtype="float32",
        attention="plain",
        remat="none",
        encoder=small_encoder(width=8, base_grid=4),
        head=ReportHeadConfig(config, resampler),
        decoder_from=None,
        label_smoothing=0.0,
        generate=GenerateConfig(beams=2, max_new=6),
        ema_decay=None,
    )
    return Report(**(fields | changes))


def batch_of(rows=8, views=2, **changes):
    draw = np.random.default_rng(0)
    prefix, text = np.zeros((rows, 3), np.int32), np.zeros((rows, 7), np.int32)
    for i in range(rows):
        prefix[i, : i % 4] = draw.integers(3, VOCAB, i % 4)
        length = 2 + i % 5
        text[i, :length] = [*draw.integers(3, VOCAB, length - 1), 1]
    there = np.ones((rows, views), bool)
    there[1::3, 1:] = False
    batch = {
        "image": draw.integers(0, 256, (rows, views, 16, 16, 1), np.uint8),
        "has_image": there,
        "valid": (draw.uniform(size=(rows, views, 16)) < 0.8) & there[..., None],
        "view_ids": draw.integers(0, 3, (rows, views)).astype(np.int32),
        "prefix": prefix,
        "text": text,
        "has_text": np.ones(rows, bool),
        "mask": np.ones(rows, bool),
        "id": np.zeros((rows, 2), np.int32),
    }
    return {name: jnp.asarray(value) for name, value in (batch | changes).items()}


@functools.cache
def compiled(objective, micro_batches, freeze):
    config = OptimConfig(1e-3, 0.0, "constant", 0.9, 0.95, 0.0, 0.0, None, 1.0, freeze, None, ())
    make = jax.jit(lambda key: init_state(objective, Optimizer(config, 8, 0, 1), key))
    return make(rng.key(0, "init")), jax.jit(
        lambda s, b: gradient(objective, s, b, KEY, micro_batches)
    )


def state_and_gradient(objective, batch, micro_batches=1, freeze=()):
    state, fn = compiled(objective, micro_batches, freeze)
    return fn(state, batch)


def close(a, b, **how):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6, **how), a, b)


def test_a_text_stands_right_behind_its_prefix():
    prefix = jnp.array([[5, 6, 0], [0, 0, 0], [7, 8, 9]])
    text = jnp.array([[3, 1, 0, 0], [4, 3, 1, 0], [3, 4, 5, 1]])
    ids, learnt = joined(prefix, text)
    want = [[5, 6, 3, 1, 0, 0, 0], [4, 3, 1, 0, 0, 0, 0], [7, 8, 9, 3, 4, 5, 1]]
    np.testing.assert_array_equal(ids, want)
    for row, (first, last) in zip(np.asarray(learnt), [(2, 4), (0, 3), (3, 7)], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), np.arange(first, last))
    ids, learnt = joined(jnp.zeros((3, 0), jnp.int32), text)
    np.testing.assert_array_equal(ids, text)
    np.testing.assert_array_equal(learnt, text != 0)


def reference(objective, params, batch):
    """Return each token's (-log p, -mean of all log p), from each row alone."""

    @jax.jit
    def log_probability(inputs, row):
        model = objective.model(params, {})
        context = model.context(row)
        memory = model.head.decoder.memory(context.tokens)
        logits = model.head.decoder(inputs, memory, memory_valid=context.valid)[0]
        return jax.nn.log_softmax(logits)

    found = []
    for i in range(len(batch["mask"])):
        row = {name: value[i : i + 1] for name, value in batch.items()}
        prefix = [int(x) for x in row["prefix"][0] if x]
        text = [int(x) for x in row["text"][0] if x]
        inputs = np.full((1, 12), 2, np.int32)  # what stands behind a text does not matter
        inputs[0, : len(prefix) + len(text)] = [0, *prefix, *text[:-1]]
        log_p = np.asarray(log_probability(inputs, row), np.float64)[len(prefix) :]
        for place, token in enumerate(text):
            found.append((-log_p[place, token], -log_p[place].mean()))
    return np.array(found)


def test_the_loss_is_the_mean_over_the_texts_tokens():
    objective, batch = small(label_smoothing=0.2), batch_of(4)
    assert isinstance(objective, Objective)
    _, out, loss = state_and_gradient(objective, batch)
    params = jax.jit(objective.init)(rng.key(0, "init"))
    want = reference(objective, params, batch)
    np.testing.assert_allclose(loss, want.mean(axis=0) @ [0.8, 0.2], rtol=1e-5)
    nll = out.metrics["nll"]
    np.testing.assert_allclose(nll.total, want[:, 0].sum(), rtol=1e-5)
    assert nll.weight == len(want)
    told = jax.jit(objective.likelihood)(params, {}, {}, batch, KEY)
    np.testing.assert_allclose(told["nll"].sum(), nll.total, rtol=1e-5)
    np.testing.assert_array_equal(told["tokens"], (batch["text"] != 0).sum(axis=1))


NO_FILMS = {"has_image": jnp.zeros((8, 2), bool)}


@pytest.mark.parametrize("resampler", [None, ResamplerConfig(queries=5, heads=2)])
def test_a_study_without_films_reaches_no_gradient_of_the_encoder(resampler):
    grads, _, loss = state_and_gradient(small(resampler=resampler), batch_of() | NO_FILMS)
    assert np.isfinite(loss)
    for name, leaf in flatten(grads).items():
        assert np.isfinite(leaf).all(), name
        if not name.startswith("head/decoder/") or "/cross/" in name:
            assert not np.any(leaf), name


def test_beside_films_it_changes_nothing_of_what_these_teach_the_encoder():
    objective, batch = small(), batch_of()
    there = {"has_image": batch["has_image"] & (jnp.arange(8) < 5)[:, None]}
    white = {"image": batch["image"].at[5:].set(255)}
    (grads, out, _), other = (state_and_gradient(objective, batch | there | x) for x in ({}, white))
    close(grads["encoder"], other[0]["encoder"])
    assert np.any(grads["encoder"]["cls"])
    alone = state_and_gradient(objective, batch | {"has_text": jnp.arange(8) < 5})
    share = alone[1].metrics["nll"].weight / out.metrics["nll"].weight
    close(jax.tree.map(lambda g: g * share, alone[0]["encoder"]), grads["encoder"])


def test_with_no_film_asked_for_the_loss_is_that_of_films_that_are_not_there():
    got, want = (
        state_and_gradient(small(), batch) for batch in (batch_of(views=0), batch_of() | NO_FILMS)
    )
    close((got[0], got[2]), (want[0], want[2]))


def test_a_row_without_text_or_padding_changes_nothing():
    batch = batch_of()
    first = {name: value[:6] for name, value in batch.items()}
    want = state_and_gradient(small(), first)
    for name in ("has_text", "mask"):
        got = state_and_gradient(small(), batch | {name: jnp.arange(8) < 6})
        close((got[0], got[2]), (want[0], want[2]))
    nothing = state_and_gradient(small(), batch | {"has_text": jnp.zeros(8, bool)})
    assert nothing[2] == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(nothing[0]))


def test_micro_batches_and_devices_give_one_gradient():
    objective, batch = small(decoder=dict(dropout=0.3), label_smoothing=0.1), batch_of()
    whole = state_and_gradient(objective, batch)
    four = state_and_gradient(objective, batch, 4)
    close((whole[0], whole[2]), (four[0], four[2]))
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch, sharding.batch_sharding(mesh))
        eight = state_and_gradient(objective, rows)
    close((whole[0], whole[2]), (eight[0], eight[2]))
    plain = state_and_gradient(small(label_smoothing=0.1), batch)
    assert abs(plain[2] - whole[2]) > 1e-4  # dropout is on


def test_a_frozen_encoder_has_no_gradient():
    objective, batch = small(), batch_of()
    grads, _, loss = state_and_gradient(objective, batch, freeze=("encoder/.*",))
    assert set(grads) == {"head"}
    np.testing.assert_allclose(loss, state_and_gradient(objective, batch)[2], rtol=1e-6)


@pytest.mark.parametrize("resampler", [None, ResamplerConfig(queries=6, heads=2)])
def test_rules_cover_the_whole_state(resampler):
    objective = small(ema_decay=0.9, resampler=resampler)
    config = OptimConfig(1e-3, 0.0, "constant", 0.9, 0.95, 0.0, 0.0, None, 0.5, (), None, ())
    state = jax.eval_shape(
        lambda key: init_state(objective, Optimizer(config, 8, 0, 1), key), rng.key(0, "init")
    )
    found = sharding.state_shardings(state, sharding.make_mesh(data=2, fsdp=2, tensor=2))
    specs = {name: where.spec for name, where in flatten(found).items()}
    split = [name for name, spec in specs.items() if "decoder/" in name and any(spec)]
    assert any("cross/kv" in name for name in split)
    assert any("embedding" in name for name in split)


def test_writing_is_right_behind_the_prefix_and_knows_no_other_row():
    objective, batch = small(ema_decay=0.5), batch_of(4)
    params = jax.jit(objective.init)(rng.key(0, "init"))
    write = jax.jit(objective.write)
    written = write(params, {}, objective.start(params), batch, KEY)["written"]
    assert written.shape == (4, 6) and written.dtype == jnp.int32
    row = {name: value[3:] for name, value in batch.items()}
    alone = jax.jit(small().write)(params, {}, {}, row, KEY)["written"]
    np.testing.assert_array_equal(alone[0], written[3])


@pytest.mark.parametrize("resampler", [None, ResamplerConfig(queries=6, heads=2)])
def test_what_is_read_for_a_token_lies_on_films_that_are_there(resampler):
    objective, batch = small(resampler=resampler), batch_of(6)
    params = jax.jit(objective.init)(rng.key(0, "init"))
    told = jax.jit(objective.explain)(params, {}, {}, batch, KEY)
    written = jax.jit(objective.write)(params, {}, {}, batch, KEY)["written"]
    np.testing.assert_array_equal(told["written"], written)
    read, log_prob = np.asarray(told["read"]), np.asarray(told["log_prob"])
    assert read.shape == (6, 6, 2, 16) and (log_prob <= 0).all()
    real = np.cumsum(np.cumsum(written == 1, axis=1), axis=1) <= 1  # the end with them
    np.testing.assert_allclose(read.sum(axis=(2, 3)), real, atol=1e-5)
    np.testing.assert_array_equal(log_prob != 0, real)
    assert not (read * ~batch["valid"][:, None]).any()


@pytest.mark.parametrize("wrong, told", [
    (dict(label_smoothing=1.0), "label_smoothing"),
    (dict(image_size=18), "image_size 18"),
    (dict(resampler=ResamplerConfig(queries=5, heads=3)), "no multiple of resampler.heads 3"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        small(**wrong)
