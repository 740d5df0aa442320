"""AdamW by name, against a NumPy reference and the published schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_step import OPTIM, optimizer
from xmae_jax.optim import OptimConfig, Optimizer, layer_rate, split


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


def test_split_by_pattern():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": {"bias": 3}}
    assert split(tree, (r".*/bias",)) == (
        {"a": {"kernel": 1}},
        {"a": {"bias": 2}, "b": {"bias": 3}},
    )
    assert split(tree, ()) == (tree, {})
