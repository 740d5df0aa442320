"""The encoder's options: learned positions, registers, layer scale, gated MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import small_batch, small_encoder, small_mae
from xmae_jax import rng, sharding
from xmae_jax.digest import flatten
from xmae_jax.models.layers import Compute
from xmae_jax.models.position import sincos_2d
from xmae_jax.models.vit import Encoder
from xmae_jax.optim import NO_DECAY, layer_rate

COMPUTE = Compute(jnp.dtype("float32"), "plain", "none")
ALL = dict(positions="learned", registers=3, layer_scale=0.1, mlp="swiglu", norm_eps=1e-5)


def made(**settings):
    config = small_encoder(**settings)
    return Encoder(config, compute=COMPUTE, rngs=nnx.Rngs(params=jax.random.key(0)))


def films(rows=2, size=32):
    return jax.random.uniform(jax.random.key(1), (rows, size, size, 1), minval=-1.0)


def test_a_loss_with_all_options_is_the_same_on_a_mesh_and_trains_all():
    mae = small_mae(encoder=small_encoder(**ALL))
    params, batch, key = mae.init(rng.key(0, "init")), small_batch(), rng.key(0, "train")
    step = jnp.zeros((), jnp.int32)

    def loss(params, batch):
        prepared = mae.prepare(batch, key, step).batch
        return mae.loss(params, {}, {}, prepared, key, step).totals["reconstruction"]

    want, gradient = jax.jit(jax.value_and_grad(loss))(params, batch)
    for name, leaf in flatten(gradient).items():
        assert float(jnp.abs(leaf).max()) > 0, name
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    where = sharding.state_shardings({"params": params}, mesh)["params"]
    split = {n: s.spec for n, s in flatten(where).items() if any(s.spec)}
    assert "tensor" in split["encoder/blocks/mlp/gate_up/kernel"]
    assert "fsdp" in split["encoder/blocks/mlp/gate_up/kernel"]
    placed = jax.device_put(params, where)
    rows = sharding.to_global(jax.tree.map(np.asarray, batch), mesh, 8)
    with jax.set_mesh(mesh):
        got = jax.jit(loss)(placed, rows)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_registers_are_attended_to_and_dropped():
    encode = jax.jit(lambda model, x: model(x, last=2))
    with_registers = made(registers=3)
    features = encode(with_registers, films())
    assert features.patches.shape == (2, 64, 16) and features.cls.shape == (2, 16)
    assert all(patches.shape == (2, 64, 16) for _, patches in features.layers)
    with_registers.registers[...] = with_registers.registers[...] + 1.0
    assert (encode(with_registers, films()).patches != features.patches).any()


def test_learned_positions_are_added_where_they_lie():
    learned, fixed = made(positions="learned"), made()
    learned.positions[...] = jnp.asarray(sincos_2d((8, 8), 16, base_grid=8))
    ids = jnp.asarray([[5, 17, 60], [0, 1, 2]])
    got, want = (jax.jit(lambda x, m=m: m(x, ids).patches)(films()) for m in (learned, fixed))
    np.testing.assert_allclose(got, want, atol=1e-6)
    # On another grid the table is resampled.
    assert learned(films(size=48)).patches.shape == (2, 144, 16)


def test_layer_scale_of_one_is_none_and_of_zero_leaves_the_embedding():
    plain, one = made(), made(layer_scale=1.0)
    zero = made(layer_scale=0.0, registers=3)
    want = plain(films()).patches
    np.testing.assert_allclose(one(films()).patches, want, atol=1e-6)
    embedded = zero.patch_embed(
        films().reshape(2, 8, 4, 8, 4).transpose(0, 1, 3, 2, 4).reshape(2, 64, 16)
    )
    embedded = embedded + sincos_2d((8, 8), 16, base_grid=8)[None]
    np.testing.assert_allclose(zero(films()).patches, zero.norm(embedded), atol=1e-5)


def test_the_parameters_of_an_encoder_without_options_are_what_they_were():
    names = set(flatten(nnx.to_pure_dict(nnx.state(made(), nnx.Param))))
    blocks = {f"blocks/{part}/{kind}" for kind in ("kernel", "bias")
              for part in ("attention/qkv", "attention/out", "mlp/up", "mlp/down")}  # fmt: skip
    blocks |= {f"blocks/{norm}/{kind}" for kind in ("scale", "bias") for norm in ("norm1", "norm2")}
    rest = {"cls", "patch_embed/kernel", "patch_embed/bias", "norm/scale", "norm/bias"}
    assert names == blocks | rest


def test_what_decays_and_how_fast_it_moves():
    params = {"encoder": nnx.to_pure_dict(nnx.state(made(**ALL), nnx.Param))}
    names = flatten(params)
    kept = {n.rpartition("/")[2] for n in names if not NO_DECAY.fullmatch(n)}
    assert kept == {"kernel", "cls", "registers", "positions"}
    for name in ("encoder/positions", "encoder/registers", "encoder/cls"):
        assert layer_rate(name, names[name].shape, params, 0.5) == 0.125
    rate = layer_rate("encoder/blocks/gamma1", (2, 16), params, 0.5)
    np.testing.assert_allclose(rate.reshape(-1), [0.25, 0.5])


def test_a_hybrid_stem_sees_past_a_patch_and_no_linear_one_does():
    def pull(stem):
        encoder = made(stem=stem, layer_scale=0.0)  # tokens keep to themselves
        slope = jax.grad(lambda x: encoder(x).patches[0, 27, 0])(films(1))
        return np.abs(slope[0, :, :, 0])

    hybrid, linear = pull("hybrid"), pull("linear")
    patch = np.zeros((32, 32), bool)
    patch[12:16, 12:16] = True  # the 28th of 8 x 8 patches of 4 px
    assert linear[patch].min() > 0 == linear[~patch].max()
    near = np.zeros((32, 32), bool)
    near[8:20, 8:20] = True
    # Beyond twelve pixels only by way of the norms' statistics.
    assert hybrid[near & ~patch].mean() > 5 * hybrid[29:, 29:].mean() > 0
    names = flatten(nnx.to_pure_dict(nnx.state(made(stem="hybrid"), nnx.Param)))
    shapes = {name: leaf.shape for name, leaf in names.items() if name.startswith("patch_embed")}
    assert shapes["patch_embed/level0/conv1/kernel"] == (3, 3, 4, 8)
    assert shapes["patch_embed/level1/conv2/kernel"] == (3, 3, 16, 16)
    mesh = sharding.make_mesh(data=8, fsdp=1)
    sharding.state_shardings({"params": {"encoder": names}}, mesh)  # raises where no rule fits


def test_nothing_can_be_hidden_from_a_hybrid_stem():
    with pytest.raises(ValueError, match="nothing can be hidden"):
        made(stem="hybrid")(films(), jnp.asarray([[5, 17], [0, 1]]))
    with pytest.raises(ValueError, match="nothing can be hidden"):
        small_mae(encoder=small_encoder(stem="hybrid"))
    for wrong in (dict(patch_size=12), dict(patch_size=1), dict(patch_size=16, width=12)):
        with pytest.raises(ValueError, match="hybrid"):
            small_encoder(stem="hybrid", **wrong)


@pytest.mark.parametrize("wrong", [dict(registers=-1), dict(norm_eps=0.0)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        small_encoder(**wrong)
