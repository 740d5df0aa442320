"""AdamW by name, against a NumPy reference and the published schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_step import OPTIM, optimizer
from xmae_jax.optim import Grid, OptimConfig, Optimizer, layer_rate, split


def test_adamw_against_numpy():
    optim = optimizer(weight_decay=0.1, weight_decay_end=0.4, clip_norm=None)
    draw = np.random.default_rng(0)
    params = {"encoder": {"mlp": {"kernel": jnp.asarray(draw.normal(size=(3, 2))),
                                  "bias": jnp.asarray(draw.normal(size=(3, 2)))}}}  # fmt: skip
    want = jax.tree.map(lambda p: np.asarray(p, np.float64), params)["encoder"]["mlp"]
    moments = {name: [np.zeros((3, 2)), np.zeros((3, 2))] for name in want}
    state = optim.init(params)
    for t in range(5):
        grads = {name: draw.normal(size=(3, 2)) for name in want}
        tree = {"encoder": {"mlp": jax.tree.map(jnp.asarray, grads)}}
        params, state = optim.update(tree, state, params, jnp.asarray(t), take=jnp.array(True))
        lr, decay = float(optim.lr(jnp.asarray(t))), float(optim.weight_decay(jnp.asarray(t)))
        for name, g in grads.items():
            m, v = moments[name]
            m[:], v[:] = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            u = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-8)
            want[name] = want[name] - lr * (u + (decay * want[name] if name == "kernel" else 0))
    for name, value in want.items():
        np.testing.assert_allclose(params["encoder"]["mlp"][name], value, rtol=1e-5)


def test_schedules():
    optim = Optimizer(
        OptimConfig(**(vars(OPTIM) | dict(blr=1.5e-4, weight_decay=0.04, weight_decay_end=0.4))),
        batch_size=4096, warmup_steps=10, total_steps=110,
    )  # fmt: skip
    assert optim.peak_lr == pytest.approx(2.4e-3)
    rates = np.array([float(optim.lr(jnp.asarray(t))) for t in range(110)])
    np.testing.assert_allclose(rates[:10], 2.4e-3 * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[60], 1.2e-3, rtol=1e-5)
    assert (np.diff(rates[10:]) < 0).all() and rates[-1] < 1e-5
    decay = [float(optim.weight_decay(jnp.asarray(t))) for t in (0, 55, 110)]
    np.testing.assert_allclose(decay, [0.04, 0.22, 0.4], rtol=1e-5)
    constant = Optimizer(OptimConfig(**(vars(OPTIM) | dict(schedule="constant"))), 8, 0, 10)
    assert float(constant.lr(jnp.asarray(0))) == float(constant.lr(jnp.asarray(9)))


def test_layer_rates():
    params = {"encoder": {"blocks": {"mlp": {"kernel": jnp.zeros((3, 2, 2))}},
                          "patch_embed": {"kernel": jnp.zeros((2, 2))}}}  # fmt: skip
    rate = layer_rate("encoder/blocks/mlp/kernel", (3, 2, 2), params, 0.5)
    np.testing.assert_allclose(rate.reshape(-1), [0.125, 0.25, 0.5])
    assert layer_rate("encoder/patch_embed/kernel", (2, 2), params, 0.5) == 0.0625
    for name in ("encoder/norm/scale", "decoder/blocks/mlp/kernel"):
        assert layer_rate(name, (2,), params, 0.5) == 1.0


def test_rates_by_name():
    params = {"encoder": {"blocks": {"kernel": jnp.zeros((2, 3))}},
              "head": {"kernel": jnp.zeros(3)}}  # fmt: skip
    grads = jax.tree.map(jnp.ones_like, params)
    moved = {}
    for rates in ((), (("encoder/.*", 0.25), (".*", 2.0))):
        optim = optimizer(rates=rates, layer_decay=0.5, weight_decay=0.0, weight_decay_end=0.0)
        args = grads, optim.init(params), params, jnp.asarray(0)
        moved[rates], _ = optim.update(*args, take=jnp.array(True))
    plain, scaled = moved.values()
    np.testing.assert_allclose(scaled["encoder"]["blocks"]["kernel"],
                               plain["encoder"]["blocks"]["kernel"] / 4, rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(scaled["head"]["kernel"], 2 * plain["head"]["kernel"], rtol=1e-6)
    for wrong, told in (((("(", 1.0),), "regular expression"), ((("a", 0.0),), "freeze keeps")):
        with pytest.raises(ValueError, match=told):
            optimizer(rates=wrong)


def test_split_by_pattern():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": {"bias": 3}}
    assert split(tree, (r".*/bias",)) == (
        {"a": {"kernel": 1}},
        {"a": {"bias": 2}, "b": {"bias": 3}},
    )
    assert split(tree, ()) == (tree, {})


GRID = Grid(blr=(0.01, 0.4), weight_decay=(0.0, 0.05, 0.3))


def test_each_member_of_a_grid_moves_as_if_alone():
    """Rate, decay, clipping and moments of six members, to the last bit those of six runs."""
    grid = optimizer(grid=GRID, clip_norm=0.5)
    draw = np.random.default_rng(0)
    start = {"head": {"kernel": jnp.asarray(draw.normal(size=(3, 2)).astype(np.float32)),
                      "bias": jnp.zeros(2)}}  # fmt: skip
    members = len(GRID.members)
    params = jax.tree.map(lambda p: jnp.stack([p] * members), start)
    state = grid.init(params)
    # Gradients from far below to far above what is clipped.
    size = np.logspace(-2, 2, members).astype(np.float32)
    grads = [
        jax.tree.map(lambda p: jnp.asarray(draw.normal(size=(members, *p.shape)).astype(np.float32)
                                           * size.reshape(-1, *[1] * p.ndim)), start)
        for _ in range(4)
    ]  # fmt: skip
    for t, g in enumerate(grads):
        params, state = grid.update(g, state, params, jnp.asarray(t), take=jnp.ones(members, bool))
    for i, (blr, decay) in enumerate(GRID.members):
        alone = optimizer(blr=blr, weight_decay=decay, weight_decay_end=decay, clip_norm=0.5)
        want, moments = start, alone.init(start)
        for t, g in enumerate(grads):
            g = jax.tree.map(lambda x, i=i: x[i], g)
            want, moments = alone.update(g, moments, want, jnp.asarray(t), take=jnp.array(True))
        for name, value in want["head"].items():
            np.testing.assert_allclose(params["head"][name][i], value, rtol=1e-6, err_msg=str(i))


def test_a_grid_is_checked():
    assert GRID.members[:3] == ((0.01, 0.0), (0.01, 0.05), (0.01, 0.3))
    for fields in (dict(blr=()), dict(blr=(0.1, 0.0)), dict(weight_decay=(-0.1,))):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Grid(**(vars(GRID) | fields))
