"""How a state lies on a mesh: every leaf by a rule, and an error that names what cannot be."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.helpers import small_mae
from xmae_jax import rng, sharding
from xmae_jax.config import objective_of, resolve
from xmae_jax.digest import flatten
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.optim import Optimizer
from xmae_jax.step import init_state

CONFIGS = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common")
)


def state_of(objective, optim, *, batch_size=8):
    init = partial(init_state, objective, Optimizer(optim, batch_size, 1, 10))
    return jax.eval_shape(init, rng.key(0, "init"))


def both_decoders():
    """Yield each config, with either decoder where it has one."""
    for name in CONFIGS:
        c = importlib.import_module(f"configs.{name}").get_config()
        for kind in ("self", "cross") if "decoder" in c.objective else ("",):
            yield pytest.param(c, kind, id=f"{name}-{kind}")


@pytest.mark.parametrize(("c", "kind"), list(both_decoders()))
def test_a_rule_for_every_leaf_and_moments_beside_their_parameter(c, kind):
    tensor = 1
    c.objective.ema_decay = 0.99
    if kind:
        c.objective.decoder.kind = kind
        tensor = 1 if c.objective.encoder.heads % 2 else 2
    config = resolve(c)
    state = state_of(objective_of(config, OBJECTIVES), config.optim)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=tensor)
    specs = {n: s.spec for n, s in flatten(sharding.state_shardings(state, mesh)).items()}
    kernels = [n for n in specs if n.startswith("params/") and n.endswith("kernel")]
    for parameter in kernels:
        inner = parameter.removeprefix("params/")
        assert specs[f"opt_state/1/mu/{inner}"] == specs[parameter]
        assert specs[f"opt_state/1/nu/{inner}"] == specs[parameter]
        assert specs[f"extra/ema/{inner}"] == specs[parameter]
        # A kernel is what is large: none is left whole, but for the lung model's and heads'.
        assert "fsdp" in specs[parameter] or inner.split("/")[0] in ("unet", "dense", "head")


def test_what_no_rule_covers_is_named():
    mesh = sharding.make_mesh(data=8, fsdp=1)
    tree = {"params": {"encoder": {"gate": jnp.zeros(3)}}}
    with pytest.raises(ValueError, match="params/encoder/gate"):
        sharding.state_shardings(tree, mesh)


def test_what_does_not_split_is_named():
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=8)
    tree = {"params": {"blocks": {"attention": {"qkv": {"kernel": jnp.zeros((2, 16, 3, 2, 8))}}}}}
    with pytest.raises(ValueError, match="attention/qkv/kernel.*2 does not split over tensor = 8"):
        sharding.state_shardings(tree, mesh)


def test_an_axis_takes_what_the_others_leave():
    assert dict(sharding.make_mesh(data=1, fsdp=-1).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert dict(sharding.make_mesh(data=-1, fsdp=1, tensor=4).shape)["data"] == 2
    for sizes in ({"data": -1, "fsdp": 3}, {"data": 3, "fsdp": 3}):
        with pytest.raises(ValueError, match="there are 8 devices"):
            sharding.make_mesh(**sizes)


def test_devices_along_tensor_share_their_rows():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    batch = {"x": np.arange(8)}
    x = sharding.to_global(batch, mesh, 8)["x"]
    assert {s.data.shape for s in x.addressable_shards} == {(2,)} and sharding.row_shards(mesh) == 4
    np.testing.assert_array_equal(x, batch["x"])


def test_the_residual_stream_is_split_over_rows():
    """Left to itself, the compiler replicates it on large meshes; the lowered program says so."""
    mae = small_mae()
    params = jax.eval_shape(mae.init, rng.key(0, "init"))
    image = jax.ShapeDtypeStruct((8, 32, 32, 1), jnp.float32)
    ids = jax.ShapeDtypeStruct((8, 12), jnp.int32)
    mesh = sharding.make_mesh(data=4, fsdp=2)

    def encode(params, image, ids):
        return mae.model(params, {}).encoder(image, ids).patches

    with jax.set_mesh(mesh):
        text = jax.jit(encode).lower(params, image, ids).as_text()
    constraints = [line for line in text.splitlines() if "sharding_constraint" in line]
    assert [c for c in constraints if '{"data", "fsdp"}' in c and "tensor<8x13x16xf32>" in c]
