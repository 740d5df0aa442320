"""Many heads at once on a frozen encoder: each as if alone, none moved by what is unknown."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_encoder
from tests.test_step import optimizer
from xmae_jax import rng
from xmae_jax.digest import flatten
from xmae_jax.heads.attentive import AttentiveConfig
from xmae_jax.heads.linear import LinearConfig
from xmae_jax.heads.query import QueryConfig
from xmae_jax.objectives.losses import Bce
from xmae_jax.objectives.probe import Probe, encode, fold, stored
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.optim import Grid
from xmae_jax.step import gradient, init_state, train_step

GLORI = QueryConfig(
    kind="query", queries="fixed", text=None, groups=None, layers=2, cls_skip=True, width=8,
    heads=2, hidden=8, dropout=0.1,
)  # fmt: skip
HEADS = {
    "linear": LinearConfig(kind="linear", pool="cls_mean", layers=2),
    "attentive": AttentiveConfig(kind="attentive", layers=1, width=8, heads=2),
    "glori": GLORI,
}


def supervised(head):
    encoder = small_encoder(width=16, depth=2, heads=2, patch_size=8, base_grid=4)
    return Supervised(
        image_size=32, compute_dtype="float32", attention="plain", remat="none", encoder=encoder,
        head=head, findings=("Mass", "Nodule", "Edema"), criterion=Bce("bce"), uncertain="ignore",
        drop_path=0.0, ema_decay=None,
    )  # fmt: skip


def films(rows=6, *, seed=0):
    """Make random films, the last rows of patches padding, with labels of every kind."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(np.array([0.0, 1.0, -1.0, np.nan], np.float32), (rows, 3))
    labels[0], labels[1] = np.nan, (1.0, 0.0, 1.0)
    return {
        "image": jnp.asarray(draw.integers(0, 256, (rows, 32, 32, 1), dtype=np.uint8)),
        "valid": jnp.asarray(np.arange(16) < 12)[None].repeat(rows, 0),
        "labels": jnp.asarray(labels),
        "mask": jnp.ones(rows, bool),
        "id": jnp.zeros((rows, 2), jnp.int32),
    }


def batch_of(objective, params, batch, *, reads):
    """Put what the encoder gives into the batch in place of the films."""
    if reads == "films":
        return batch
    kept = {name: batch[name] for name in ("labels", "mask", "id")}
    run = jax.jit(partial(encode, objective, patches=reads == "patches"))
    return kept | run(params, batch)


def whole_logits(objective, params, batch):
    run = jax.jit(lambda p, b: objective.classify(p, {}, {}, b, jax.random.key(0)))
    return run(params, batch)["logits"]


@pytest.mark.parametrize(
    ("name", "reads"),
    [("linear", "pooled"), ("glori", "patches"), ("attentive", "films")],
)
def test_members_give_what_the_whole_model_gives(name, reads):
    """A probe's logits are those of encoder and head together, for each member's own head."""
    o = supervised(HEADS[name])
    whole, batch, probe = jax.jit(o.init)(rng.key(0, "init")), films(), Probe(o, reads, 2)
    alike = jax.eval_shape(probe.init, rng.key(0, "init"))["head"]
    heads = [jax.tree.map(lambda p, f=factor: f * p, whole["head"]) for factor in (1.0, 0.5)]
    params = {**whole, "head": jax.tree.map(lambda *p: jnp.stack(p), *heads)}
    assert jax.tree.map(jnp.shape, params["head"]) == jax.tree.map(jnp.shape, alike)
    rows = batch_of(o, whole, batch, reads=reads)
    run = jax.jit(lambda p, b: probe.members_logits(p, {}, {}, b, jax.random.key(0)))
    logits = run(params, rows)["logits"]
    assert logits.shape == (6, 2, 3)
    for i, head in enumerate(heads):
        want = whole_logits(o, {**whole, "head": head}, batch)
        # Stored patches have eleven bits.
        tolerance = 2e-3 if reads == "patches" else 2e-6
        np.testing.assert_allclose(logits[:, i], want, atol=tolerance)


@pytest.mark.parametrize("name", ["linear", "glori"])
def test_unknown_labels_give_no_gradient_to_any_member(name):
    """Not zero to rounding but zero, whatever the film; and a known label gives one to each."""
    o = supervised(HEADS[name])
    reads = "pooled" if name == "linear" else "patches"
    probe = Probe(o, reads, 3)
    fixed = ("head/queries",) * (name == "glori")
    optim = optimizer(grid=Grid((0.1, 1.0, 10.0), (0.0,)), freeze=fixed)
    state = jax.jit(partial(init_state, probe, optim))(rng.key(0, "init"))
    rows = batch_of(o, jax.jit(o.init)(rng.key(1, "init")), films(), reads=reads)
    grads = jax.jit(lambda b: gradient(probe, state, b, rng.key(0, "train"), 1)[0])
    for unknown in (np.nan, -1.0):  # uncertain labels are ignored here
        nothing = {**rows, "labels": jnp.full((6, 3), unknown)}
        for path, g in flatten(grads(nothing)).items():
            np.testing.assert_array_equal(g, 0.0, err_msg=path)
    one = {**rows, "labels": jnp.full((6, 3), jnp.nan).at[2, 1].set(1.0)}
    g = flatten(grads(one))
    bias = g["head/readout/bias" if name == "glori" else "head/out/bias"]
    assert (bias[:, 1] != 0).all() and not bias[:, [0, 2]].any()
    # What is seen on a film of which nothing is known moves nothing.
    assert np.isnan(rows["labels"][0]).all()
    read = [name for name in rows if name in ("pooled", "patches")]
    changed = {**rows, **{name: rows[name].at[0].set(0) for name in read}}
    changed, whole = (flatten(grads(b)) for b in (changed, rows))
    for path, a in whole.items():
        np.testing.assert_allclose(a, changed[path], atol=1e-7, err_msg=path)


def test_a_member_is_a_run_of_its_own():
    """Ten steps of three heads at once, against three runs without a grid."""
    o = supervised(HEADS["linear"])
    encoder = jax.jit(o.init)(rng.key(1, "init"))
    batches = [batch_of(o, encoder, films(seed=i), reads="pooled") for i in range(3)]

    def trained(members, **optim):
        probe, adam = Probe(o, "pooled", members), optimizer(**optim)
        state = jax.jit(partial(init_state, probe, adam))(rng.key(0, "init"))
        step = jax.jit(partial(train_step, objective=probe, optimizer=adam, seed=0, micro_batches=1,
                               spike_sigma=np.inf))  # fmt: skip
        for i in range(10):
            state, _ = step(state, batches[i % 3])
        return state.params["head"]["out"]

    grid = Grid((0.1, 1.0, 3.0), (0.3,))
    many = trained(3, grid=grid)
    for i, (blr, decay) in enumerate(grid.members):
        alone = trained(None, blr=blr, weight_decay=decay, weight_decay_end=decay)
        for name, value in alone.items():
            np.testing.assert_allclose(many[name][i], value, rtol=2e-5, atol=1e-7)


def test_a_folded_head_reads_features_as_they_are():
    o = supervised(HEADS["linear"])
    params, draw = jax.jit(o.init)(rng.key(0, "init")), np.random.default_rng(0)
    raw = np.asarray(batch_of(o, params, films(), reads="pooled")["pooled"])
    mean, deviation = raw.mean(0), raw.std(0) + 1e-3
    shapes = {name: p.shape for name, p in params["head"]["out"].items()}
    head = {"out": {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}}
    standardised = {"pooled": jnp.asarray((raw - mean) / deviation)}
    want = Probe(o, "pooled", None).logits(head, stored(standardised, grid=(1, 1), dtype="float32"))
    got = whole_logits(o, {**params, "head": fold(o, head, mean, deviation)}, films())
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
