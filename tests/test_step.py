"""The pure step: the same on every mesh and with any number of micro-batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_batch, small_mae
from xmae_jax import rng, sharding
from xmae_jax.checkpoint import flatten
from xmae_jax.optim import OptimConfig, Optimizer
from xmae_jax.step import gradient, init_state, train_step

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
)


def optimizer(**changes) -> Optimizer:
    return Optimizer(OptimConfig(**(vars(OPTIM) | changes)), 8, 2, 20)


def steps(mesh, *, mae, count, micro_batches=1, optim=None):
    """Return the losses of `count` steps on a mesh, and the last state."""
    optim = optim or optimizer()
    init = partial(init_state, mae, optim)
    shapes = jax.eval_shape(init, rng.key(0, "init"))
    shardings = sharding.state_shardings(shapes, mesh)
    state = jax.jit(init, out_shardings=shardings)(rng.key(0, "init"))
    step = jax.jit(
        partial(train_step, objective=mae, optimizer=optim, seed=0, micro_batches=micro_batches),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    losses = []
    for i in range(count):
        batch = {k: np.asarray(v) for k, v in small_batch(seed=i % 3).items()}
        state, log = step(state, sharding.to_global(batch, mesh, 8))
        losses.append(float(log["training_loss"]))
    return losses, state


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-3)])
def test_every_mesh_gives_the_same_losses(dtype, tolerance):
    mae = small_mae(compute_dtype=dtype, ema_decay=0.9)
    one, _ = steps(sharding.make_mesh(data=1, fsdp=1), mae=mae, count=20)
    assert one[-1] < 0.9 * one[0]
    for data, fsdp in ((8, 1), (4, 2)):
        mesh = sharding.make_mesh(data=data, fsdp=fsdp)
        many, state = steps(mesh, mae=mae, count=20)
        np.testing.assert_allclose(many, one, rtol=tolerance)
        if fsdp == 2:
            kernel = state.params["encoder"]["blocks"]["mlp"]["up"]["kernel"]
            assert kernel.addressable_shards[0].data.shape == (2, 8, 64)
            moment = flatten(state)["opt_state/1/mu/encoder/blocks/mlp/up/kernel"]
            assert moment.sharding == kernel.sharding


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


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
    mae = small_mae(ema_decay=0.9)
    optim = optimizer()
    state = init_state(mae, optim, rng.key(0, "init"))
    step = jax.jit(partial(train_step, objective=mae, optimizer=optim, seed=0, micro_batches=1))
    bad = flatten(state.params)["decoder/pixels/bias"].at[0].set(jnp.inf)
    state.params["decoder"]["pixels"]["bias"] = bad
    after, log = step(state, small_batch())
    assert int(after.step) == 1 and int(log["skipped"]) == int(after.guard["skipped"]) == 1
    for part in ("params", "opt_state", "extra"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))


def test_frozen_parameters_stay_and_have_no_moments():
    mae = small_mae()
    optim = optimizer(freeze=(r".*/(bias|scale)",))
    state = init_state(mae, optim, rng.key(0, "init"))
    assert not [n for n in flatten(state.opt_state) if n.endswith(("bias", "scale"))]
    step = jax.jit(partial(train_step, objective=mae, optimizer=optim, seed=0, micro_batches=1))
    after, _ = step(state, small_batch())
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    moved = flatten(after.params)["encoder/patch_embed/kernel"]
    assert (moved != flatten(state.params)["encoder/patch_embed/kernel"]).any()
    assert set(flatten(after.frozen)) | set(flatten(after.params)) == set(
        flatten(jax.eval_shape(mae.init, rng.key(0, "init")))
    )
