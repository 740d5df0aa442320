"""The pure step: the same on every mesh and with any number of micro-batches."""

import dataclasses
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_batch, small_mae
from xmae_jax import rng, sharding
from xmae_jax.digest import flatten
from xmae_jax.objectives.poisoned import poisoned
from xmae_jax.optim import Grid, OptimConfig, Optimizer
from xmae_jax.step import WINDOW, _judge, gradient, init_state, train_step
from xmae_jax.typing import LossOut, Prepared

OPTIM = OptimConfig(
    blr=0.1,
    min_lr=0.0,
    schedule="cosine",
    b1=0.9,
    b2=0.95,
    weight_decay=0.05,
    weight_decay_end=0.05,
    clip_norm=1.0,
    layer_decay=1.0,
    freeze=(),
    grid=None,
    rates=(),
)


def optimizer(**changes) -> Optimizer:
    return Optimizer(OptimConfig(**(vars(OPTIM) | changes)), 8, 2, 20)


MAE = small_mae(ema_decay=0.9)


def train_fn(mae, optim, spike_sigma=6.0):
    return partial(train_step, objective=mae, optimizer=optim, seed=0, micro_batches=1,
                   spike_sigma=spike_sigma)  # fmt: skip


@cache
def compiled(poison=None, spike_sigma=6.0):
    """Jit the step of `MAE`, once for all tests."""
    mae = poisoned(MAE, poison) if poison else MAE
    return jax.jit(train_fn(mae, optimizer(), spike_sigma))


def start():
    return init_state(MAE, optimizer(), rng.key(0, "init"))


def steps(mesh, *, mae, count):
    """Return the losses of `count` steps on a mesh, and the last state."""
    optim = optimizer()
    init = partial(init_state, mae, optim)
    shapes = jax.eval_shape(init, rng.key(0, "init"))
    shardings = sharding.state_shardings(shapes, mesh)
    state = jax.jit(init, out_shardings=shardings)(rng.key(0, "init"))
    step = jax.jit(
        train_fn(mae, optim),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    losses = []
    with jax.set_mesh(mesh):
        for i in range(count):
            batch = {k: np.asarray(v) for k, v in small_batch(seed=i % 3).items()}
            state, log = step(state, sharding.to_global(batch, mesh, 8))
            losses.append(float(log["training_loss"]))
    return losses, state


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-3)])
def test_every_mesh_gives_the_same_losses(dtype, tolerance):
    attention = "chunked" if dtype == "float32" else "plain"
    mae = small_mae(compute_dtype=dtype, attention=attention, ema_decay=0.9)
    one, _ = steps(sharding.make_mesh(data=1, fsdp=1), mae=mae, count=20)
    assert one[-1] < 0.9 * one[0]
    meshes = [(8, 1, 1), (4, 2, 1)]
    if dtype == "float32":  # in bfloat16 partial sums along `tensor` are rounded before they meet
        meshes.append((2, 2, 2))
    for data, fsdp, tensor in meshes:
        mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
        many, state = steps(mesh, mae=mae, count=20)
        np.testing.assert_allclose(many, one, rtol=tolerance)
        if fsdp == 2 and tensor == 1:
            kernel = state.params["encoder"]["blocks"]["mlp"]["up"]["kernel"]
            assert kernel.addressable_shards[0].data.shape == (2, 8, 64)
            moment = flatten(state)["opt_state/1/mu/encoder/blocks/mlp/up/kernel"]
            assert moment.sharding == kernel.sharding
        if tensor == 2:
            qkv = state.extra["ema"]["encoder"]["blocks"]["attention"]["qkv"]["kernel"]
            assert qkv.addressable_shards[0].data.shape == (2, 8, 3, 1, 8)


def test_micro_batches_give_one_gradient():
    mae = small_mae(norm_pix_loss=True)
    state = init_state(mae, optimizer(), rng.key(0, "init"))
    batch = small_batch()
    # Rows of unequal weight: a mean of means would be wrong.
    batch["box"] = batch["box"].at[::3, 2].set(0.4)
    batch["mask"] = batch["mask"].at[5].set(False)
    run = jax.jit(lambda s, b, m: gradient(mae, s, b, rng.key(0, "train"), m), static_argnums=2)
    whole, out, loss = run(state, batch, 1)
    parts, part_out, part_loss = run(state, batch, 4)
    np.testing.assert_allclose(part_loss, loss, rtol=1e-6)
    for name, g in flatten(whole).items():
        np.testing.assert_allclose(flatten(parts)[name], g, rtol=1e-4, atol=1e-7, err_msg=name)
    for name, mean in out.metrics.items():
        np.testing.assert_allclose(part_out.metrics[name], mean, rtol=1e-5)


UPDATED = ("params", "opt_state", "extra")


def assert_equal(state, other, *parts):
    for part in parts:
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(other, part))


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    step = compiled("2-3:nan")
    state, _ = step(start(), small_batch())
    for count in (1, 2):
        before = state
        state, log = step(before, small_batch())
        assert_equal(state, before, *UPDATED)
        assert int(state.step) == 1 + count
        assert int(log["skipped"]) == int(log["in_a_row"]) == int(state.guard["skipped"]) == count
        assert int(state.guard["taken"]) == 1
        assert not np.isfinite(log["totals"]["reconstruction"])
        assert not any(flatten(log["finite_grads"]).values())
    after, log = step(state, small_batch())
    assert int(log["skipped"]) == 2 and int(log["in_a_row"]) == 0
    assert (flatten(after.params)["encoder/cls"] != flatten(state.params)["encoder/cls"]).any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


def full_window(state, losses, l2_grads):
    """Give a state the memory of 128 steps."""
    draw = np.random.default_rng(0).normal(size=WINDOW).astype(np.float32)
    windows = {"losses": losses + 0.01 * losses * draw, "l2_grads": l2_grads + l2_grads * draw / 9}
    guard = state.guard | jax.tree.map(jnp.asarray, windows) | {"taken": jnp.int32(WINDOW + 5)}
    return dataclasses.replace(state, guard=guard), windows


def test_a_spike_is_left_out_and_a_window_holds_steps_taken_only():
    _, log = compiled()(start(), small_batch())
    loss, l2_grads = float(log["training_loss"]), float(log["l2_grads"])
    assert np.isinf(log["limits"]["losses"])  # no window yet
    state, windows = full_window(start(), loss, l2_grads)

    taken, log = compiled()(state, small_batch())
    for name, window in windows.items():
        np.testing.assert_allclose(log["limits"][name], window.mean() + 6 * window.std(), rtol=1e-4)
    assert int(log["skipped"]) == 0 and int(taken.guard["taken"]) == WINDOW + 6
    assert float(taken.guard["losses"][5]) == loss
    others = [np.delete(x, 5) for x in (taken.guard["losses"], windows["losses"])]
    np.testing.assert_array_equal(*others)

    left, log = compiled("1:spike")(state, small_batch())
    assert float(log["training_loss"]) > 50 * loss and int(log["skipped"]) == 1
    assert_equal(left, state, *UPDATED)
    np.testing.assert_array_equal(left.guard["losses"], windows["losses"])
    assert int(left.guard["taken"]) == WINDOW + 5


@pytest.mark.parametrize(
    ("loss", "l2_grads", "sigma", "taken"),
    [
        (0.1, 0.3, 6.0, True),  # a loss that stands still is no spike
        (0.2, 0.3, 6.0, False),
        (0.1, 0.4, 6.0, False),  # nor need the loss spike with the gradient
        (0.2, 0.4, math.inf, True),
        (math.inf, 0.3, math.inf, False),
        (0.1, math.nan, math.inf, False),
    ],
)
def test_what_counts_as_a_spike(loss, l2_grads, sigma, taken):
    guard = start().guard | {
        "losses": jnp.full(WINDOW, 0.1), "l2_grads": jnp.full(WINDOW, 0.3),
        "taken": jnp.int32(WINDOW), "in_a_row": jnp.int32(3), "skipped": jnp.int32(7),
    }  # fmt: skip
    after, _, take = _judge(guard, jnp.float32(loss), jnp.float32(l2_grads), sigma)
    assert bool(take) == taken
    assert int(after["in_a_row"]) == (0 if taken else 4)
    assert int(after["skipped"]) == (7 if taken else 8)


def test_guards_that_find_nothing_change_no_bit():
    """150 steps with the guard, without a threshold, and by hand with no judge at all."""
    optim = optimizer()

    @jax.jit
    def bare(state, batch, take):
        key = rng.key(0, "train", state.step)
        grads, out, loss = gradient(MAE, state, batch, key, 1)
        params, opt_state = optim.update(
            grads, state.opt_state, state.params, state.step, take=take
        )
        extra = MAE.after_update(params, out.extra, state.step)
        extra = jax.tree.map(partial(jnp.where, take), extra, state.extra)
        return dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, extra=extra
        ), loss

    states = [start()] * 3
    for i in range(WINDOW + 22):
        batch = small_batch(seed=i % 3)
        states[0], log = compiled()(states[0], batch)
        states[1], _ = compiled(spike_sigma=math.inf)(states[1], batch)
        states[2], _ = bare(states[2], batch, jnp.array(True))
    assert int(log["skipped"]) == 0 and np.isfinite(log["limits"]["losses"])
    assert_equal(states[0], states[1], *UPDATED, "guard")
    assert_equal(states[0], states[2], *UPDATED)


def test_a_poison_is_read_or_refused():
    assert poisoned(MAE, "3:inf").factor == math.inf and poisoned(MAE, "3-4:nan").last == 4
    for spec in ("3", "nan", "3:boom", "-3:nan"):
        with pytest.raises(ValueError, match="is not N:kind"):
            poisoned(MAE, spec)


def test_rows_of_damaged_records_are_counted():
    batch = small_batch()
    batch["mask"] = batch["mask"].at[3].set(False)
    state = start()
    for _ in range(2):
        state, log = compiled()(state, batch)
    assert int(log["bad_rows"]) == 2 and int(log["skipped"]) == 0


def test_frozen_parameters_stay_and_have_no_moments():
    mae = small_mae()
    optim = optimizer(freeze=(r".*/(bias|scale)",))
    state = init_state(mae, optim, rng.key(0, "init"))
    assert not [n for n in flatten(state.opt_state) if n.endswith(("bias", "scale"))]
    after, _ = jax.jit(train_fn(mae, optim))(state, small_batch())
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    moved = flatten(after.params)["encoder/patch_embed/kernel"]
    assert (moved != flatten(state.params)["encoder/patch_embed/kernel"]).any()
    assert set(flatten(after.frozen)) | set(flatten(after.params)) == set(
        flatten(jax.eval_shape(mae.init, rng.key(0, "init")))
    )


@dataclasses.dataclass(frozen=True)
class Lines:
    """Fit a line to rows of `x` by each member, the loss times `factors`; those may be poison."""

    factors: tuple[float, ...]

    view, grid = "film", (1, 1)

    def predict_fns(self):
        return {}

    def init(self, key):
        kernel = jax.random.normal(key, (5,))
        return {"head": {"kernel": jnp.stack([kernel] * len(self.factors))}}

    def start(self, params):
        return {}

    def prepare(self, batch, key, step):
        return Prepared(batch, {"square": batch["mask"].sum().astype(jnp.float32)})

    def loss(self, params, frozen, extra, batch, key, step):
        error = batch["x"] @ params["head"]["kernel"].T - batch["y"][:, None]  # b m
        factor = jnp.where(step < 2, 1.0, jnp.asarray(self.factors))
        return LossOut({"square": factor * (error**2).sum(axis=0)}, {}, extra)

    def after_update(self, params, extra, step):
        return extra


def fit(factors, *, blr, count=6, micro_batches=1, poison=None):
    """Take steps; return the state and what each logged."""
    grid = Grid(blr=blr, weight_decay=(0.05,))
    lines, optim = Lines(factors), optimizer(grid=grid)
    step = jax.jit(partial(train_step, objective=lines, optimizer=optim, seed=0,
                           micro_batches=micro_batches, spike_sigma=math.inf))  # fmt: skip
    state, logs = init_state(lines, optim, rng.key(0, "init")), []
    draw = np.random.default_rng(0)
    for i in range(count):
        x, y = draw.normal(size=(8, 5)), draw.normal(size=8)
        y[:] = np.nan if i == poison else y
        arrays = {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.ones(8, bool)}
        state, log = step(state, arrays)
        logs.append(log)
    return state, logs


BLR = (0.01, 0.1, 1.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_member_that_is_not_finite_stays_and_the_others_do_not_notice(poison):
    sound, _ = fit((1.0, 1.0, 1.0), blr=BLR)
    early, _ = fit((1.0, 1.0, 1.0), blr=BLR, count=2)
    state, logs = fit((1.0, poison, 1.0), blr=BLR)
    assert [log["alive"].tolist() for log in logs] == 2 * [3 * [True]] + 4 * [[True, False, True]]
    assert int(state.guard["skipped"]) == 0 and int(state.guard["taken"]) == 6
    for name, leaf in flatten((state.params, state.opt_state)).items():
        want, before = (flatten((s.params, s.opt_state))[name] for s in (sound, early))
        for member in (0, 2):
            np.testing.assert_array_equal(leaf[member], want[member], err_msg=name)
        np.testing.assert_array_equal(leaf[1], before[1], err_msg=name)
    for log in logs:
        assert np.isfinite([log["training_loss"], log["l2_grads"], log["l2_params"]]).all()
    without, _ = fit((1.0, 1.0), blr=(BLR[0], BLR[2]))
    kernel = np.delete(state.params["head"]["kernel"], 1, axis=0)
    np.testing.assert_allclose(kernel, without.params["head"]["kernel"], rtol=1e-6)


def test_a_batch_that_is_not_finite_for_all_is_skipped_and_nobody_dies():
    state, logs = fit((1.0, 1.0), blr=BLR[:2], count=4, poison=2)
    assert [int(log["in_a_row"]) for log in logs] == [0, 0, 1, 0]
    assert np.isnan(logs[2]["totals"]["square"]) and state.guard["alive"].all()
    before, _ = fit((1.0, 1.0), blr=BLR[:2], count=2)
    after, _ = fit((1.0, 1.0), blr=BLR[:2], count=3, poison=2)
    assert_equal(after, before, *UPDATED)


def test_members_and_micro_batches():
    whole, _ = fit((1.0, 1.0, math.nan), blr=BLR)
    parts, logs = fit((1.0, 1.0, math.nan), blr=BLR, micro_batches=4)
    np.testing.assert_allclose(
        parts.params["head"]["kernel"], whole.params["head"]["kernel"], rtol=1e-4
    )
    assert logs[-1]["alive"].tolist() == [True, True, False]


def test_a_run_without_a_grid_has_the_tree_that_it_had():
    names = flatten(jax.eval_shape(start))
    assert not [name for name in names if "alive" in name]
    assert {name.partition("/")[2] for name in names if name.startswith("guard/")} == {
        "skipped", "in_a_row", "bad_rows", "taken", "losses", "l2_grads",
    }  # fmt: skip
