"""Checkpoints: the whole state comes back, onto any mesh; parameters move between runs."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from tests.helpers import small_batch, small_mae
from tests.test_step import optimizer
from xmae_jax import checkpoint, rng, sharding, step
from xmae_jax.writers import Writer


def placed(mae, mesh, *, optim=None):
    init = partial(step.init_state, mae, optim or optimizer())
    shapes = jax.eval_shape(init, rng.key(0, "init"))
    shardings = sharding.state_shardings(shapes, mesh)
    like = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )
    return like, shardings, jax.jit(init, out_shardings=shardings)


def test_a_state_comes_back_on_another_mesh(tmp_path):
    mae = small_mae(ema_decay=0.9)
    like, _, init = placed(mae, sharding.make_mesh(data=4, fsdp=2))
    take = jax.jit(partial(step.train_step, objective=mae, optimizer=optimizer(), seed=0,
                           micro_batches=1))  # fmt: skip
    state, _ = take(init(rng.key(0, "init")), small_batch())
    saved = checkpoint.Checkpoints(tmp_path, keep=2)
    for number in (1, 2, 3):
        saved.save(number, state)
    saved.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}

    other, _, _ = placed(mae, sharding.make_mesh(data=1, fsdp=1))
    again = checkpoint.Checkpoints(tmp_path, keep=2)
    assert again.latest == 3
    restored = again.restore(3, other)
    assert checkpoint.digests(restored) == checkpoint.digests(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(restored))


def test_digests_see_every_part_of_a_leaf():
    one = {"a": np.zeros((2, 3), np.float32)}
    same = checkpoint.digests({"a": np.zeros((2, 3), np.float32)})
    assert checkpoint.digests(one) == same
    for other in (
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.array([[0, 0, 0], [0, 0, -0.0]], np.float32)},
    ):
        assert checkpoint.digests(other) != same


def test_parameters_move_along_a_chain_of_resolutions(tmp_path):
    mesh = sharding.make_mesh(data=4, fsdp=2)
    mae = small_mae()
    _, _, init = placed(mae, mesh)
    state = init(rng.key(3, "init"))
    saved = checkpoint.Checkpoints(tmp_path, keep=2)
    saved.save(5, state)
    saved.close()

    larger = small_mae(image_size=64)
    like, shardings, _ = placed(larger, mesh)
    params = checkpoint.load_params(tmp_path, like.params, shardings=shardings.params)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert all(
        x.sharding == y
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(shardings.params), strict=True)
    )

    wider = small_mae(decoder=dataclasses.replace(mae.decoder, width=16))
    like, shardings, _ = placed(wider, mesh)
    with pytest.raises(ValueError, match=r"decoder/norm/scale is \(8,\) there and \(16,\)"):
        checkpoint.load_params(tmp_path, like.params, shardings=shardings.params)
    deeper = {**like.params, "head": {"kernel": jax.ShapeDtypeStruct((2,), np.float32)}}
    where = {**shardings.params, "head": {"kernel": None}}
    with pytest.raises(ValueError, match="missing head/kernel"):
        checkpoint.load_params(tmp_path, deeper, shardings=where)
    with pytest.raises(ValueError, match="has no checkpoints"):
        checkpoint.load_params(tmp_path / "nowhere", like.params, shardings=shardings.params)


def test_a_state_that_does_not_fit_is_refused_by_name(tmp_path):
    mesh = sharding.make_mesh(data=1, fsdp=1)
    _, _, init = placed(small_mae(), mesh)
    saved = checkpoint.Checkpoints(tmp_path, keep=1)
    saved.save(1, init(rng.key(0, "init")))
    saved.wait()
    wider = small_mae(decoder=dataclasses.replace(small_mae().decoder, width=16))
    with pytest.raises(ValueError, match=r"params/decoder/norm/scale is \(8,\) there and \(16,\)"):
        saved.restore(1, placed(wider, mesh)[0])
    saved.close()


def test_frozen_parameters_can_be_loaded_and_trained(tmp_path):
    mesh = sharding.make_mesh(data=1, fsdp=1)
    _, _, init = placed(small_mae(), mesh, optim=optimizer(freeze=(r".*/(bias|scale)",)))
    state = init(rng.key(3, "init"))
    assert state.frozen
    saved = checkpoint.Checkpoints(tmp_path, keep=1)
    saved.save(1, state)
    saved.close()
    like, shardings, _ = placed(small_mae(), mesh)
    params = checkpoint.load_params(tmp_path, like.params, shardings=shardings.params)
    np.testing.assert_array_equal(
        params["encoder"]["norm"]["scale"], state.frozen["encoder"]["norm"]["scale"]
    )


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path):
    first = Writer(tmp_path, active=True)
    first.write("train", 1, {"training_loss": 0.5})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 2, "kind": "tra')
    second = Writer(tmp_path, active=True)
    second.write("event", 1, {"event": "resume"})
    second.close()
    parsed = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in parsed] == ["train", "event"]
    Writer(tmp_path / "silent", active=False).write("train", 1, {})
    assert not (tmp_path / "silent").exists()
