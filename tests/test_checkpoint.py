"""Checkpoints: the whole state comes back, onto any mesh; parameters move between runs."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_batch, small_mae
from tests.test_step import optimizer, train_fn
from xmae_jax import checkpoint, digest, rng, sharding, step
from xmae_jax.rundir import Run
from xmae_jax.writers import Writer


def placed(mae, mesh, *, optim=None):
    init = partial(step.init_state, mae, optim or optimizer())
    shapes = jax.eval_shape(init, rng.key(0, "init"))
    shardings = sharding.state_shardings(shapes, mesh)
    like = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )
    return like, shardings, jax.jit(init, out_shardings=shardings)


def checkpoints(workdir, *, run="a", config="c", configs=(), keep=2):
    workdir.mkdir(exist_ok=True)
    record = Run(workdir, run, [], configs=configs)
    return checkpoint.Checkpoints(workdir, run=record, config=config, keep=keep)


def save(saved, step, state):
    saved.save(step, state)
    assert saved.settle() is None


def listing(workdir):
    """Every file under checkpoints/ with its content."""
    folder = workdir / "checkpoints"
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def states():
    """Three states of one run, a step apart, each leaf different."""
    like, _, init = placed(small_mae(ema_decay=0.9), sharding.make_mesh(data=1, fsdp=1))
    first = init(rng.key(0, "init"))
    more = [jax.tree.map(lambda x, i=i: (x + i).astype(x.dtype), first) for i in (1, 2)]
    return like, (first, *more)


@pytest.fixture(scope="module")
def two_steps(states, tmp_path_factory):
    """Steps 10 and 20 of a run."""
    workdir = tmp_path_factory.mktemp("two")
    saved = checkpoints(workdir)
    for number, state in ((10, states[1][0]), (20, states[1][1])):
        save(saved, number, state)
    saved.close()
    return workdir


def copy(workdir, target):
    shutil.copytree(workdir, target, dirs_exist_ok=True)
    return target


def test_a_state_comes_back_on_another_mesh_and_goes_on_as_it_would_have(tmp_path):
    mae = small_mae(ema_decay=0.9)
    like, shardings, init = placed(mae, sharding.make_mesh(data=4, fsdp=2))
    take = partial(train_fn(mae, optimizer()))
    state = init(rng.key(0, "init"))
    eight = jax.jit(take, out_shardings=(shardings, None))
    state, _ = eight(state, small_batch())
    saved = checkpoints(tmp_path)
    for number in (1, 2, 3):
        save(saved, number, state)
    saved.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}

    def losses(step_fn, state):
        out = []
        for i in range(20):
            state, log = step_fn(state, small_batch(seed=i % 3))
            out.append(float(log["training_loss"]))
        return out

    want = losses(eight, state)
    for data, fsdp in ((1, 1), (2, 1)):
        other, _, _ = placed(mae, sharding.make_mesh(data=data, fsdp=fsdp))
        again = checkpoints(tmp_path)
        step, restored, config, damaged, foreign = again.restore(other)
        assert (step, config, damaged, foreign) == (3, "c", {}, {})
        assert digest.leaf_digests(restored) == digest.leaf_digests(state)
        assert digest.sha256(restored) == digest.sha256(state)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert all(len(x.sharding.device_set) == data * fsdp for x in jax.tree.leaves(restored))
        np.testing.assert_allclose(losses(jax.jit(take), restored), want, rtol=1e-5)


@pytest.mark.parametrize("digests", [digest.leaf_digests, digest.sha256])
def test_digests_see_every_part_of_a_leaf(digests):
    one = {"a": np.zeros((2, 3), np.float32)}
    assert digests(one) == digests({"a": np.zeros((2, 3), np.float32)})
    for other in (
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.array([[0, 0, 0], [0, 0, -0.0]], np.float32)},
    ):
        assert digests(other) != digests(one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_digest_sees_every_bit_and_every_place(dtype):
    draw = np.random.default_rng(0)
    size = jnp.dtype(dtype).itemsize
    raw = draw.integers(0, 2 if dtype == "bool" else 256, 60 * size, dtype=np.uint8)
    array = raw.view(jnp.dtype(dtype)).reshape(3, 4, 5)
    want = digest.leaf_digests({"a": array})["a"]
    for bit in draw.choice(60 if dtype == "bool" else 480 * size, 40, replace=False):
        changed = raw.copy()
        changed[bit // (1 if dtype == "bool" else 8)] ^= 1 if dtype == "bool" else 1 << bit % 8
        other = changed.view(jnp.dtype(dtype)).reshape(3, 4, 5)
        assert digest.leaf_digests({"a": other})["a"] != want, bit
    swapped = array.copy()
    swapped[0, 0], swapped[2, 1] = array[2, 1], array[0, 0]
    assert digest.leaf_digests({"a": swapped})["a"] != want


def hurt(directory, kind):
    """Damage all array data of a step."""
    for data in (directory / "state").rglob("d/*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        if kind == "delete":
            data.unlink()
        else:
            data.write_bytes(content if kind == "flip" else content[:-9])


def damage(directory, draw, kind):
    """Flip a bit of, cut, or delete one of a step's files; return its name and what was done."""
    files = sorted(p for p in directory.rglob("*") if p.stat().st_size and p.is_file())
    sizes = np.array([p.stat().st_size for p in files])
    # Half over files, for the small ones count as well, and half over bytes: the arrays.
    shares = sizes / sizes.sum() if draw.random() < 0.5 else None
    path = files[draw.choice(len(files), p=shares)]
    if kind == "delete":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        at = int(draw.integers(len(content)))
        if kind == "cut":
            content = content[:at]
        else:
            content[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(content)
    return f"{kind} {path.relative_to(directory)}"


def damage_and_restore(two_steps, states, folder, kinds):
    """Damage step 20 in each way; return how often step 10 was restored for it."""
    like, (ten, twenty, _) = states
    want = {10: digest.sha256(ten), 20: digest.sha256(twenty)}
    draw = np.random.default_rng(0)
    fallbacks = 0
    for number, kind in enumerate(kinds):
        workdir = copy(two_steps, folder / str(number))
        what = damage(workdir / "checkpoints" / "20", draw, kind)
        before = listing(workdir)
        step, state, _, damaged, foreign = checkpoints(workdir).restore(like)
        assert digest.sha256(state) == want[step], what
        told = damaged | foreign
        assert len(told) == (step == 10), what
        assert all(text.startswith("checkpoint 20: ") for text in told.values()), told
        assert listing(workdir) == before
        fallbacks += step == 10
        shutil.rmtree(workdir)
    return fallbacks


def test_damage_is_never_silent(two_steps, states, tmp_path):
    kinds = ["flip"] * 28 + ["cut"] * 6 + ["delete"] * 6
    assert damage_and_restore(two_steps, states, tmp_path, kinds) > 8


@pytest.mark.drill
def test_damage_is_never_silent_drill(two_steps, states, tmp_path):
    kinds = ["flip"] * 200 + ["cut"] * 20 + ["delete"] * 20
    count = damage_and_restore(two_steps, states, tmp_path, kinds)
    print(f"{len(kinds)} damages: {count} fell back to step 10, the others changed nothing")
    assert count > 60


def test_a_flip_in_the_arrays_names_the_leaf(two_steps, states, tmp_path):
    workdir = copy(two_steps, tmp_path / "run")
    # Rewrite step 20 with another array under the digests of the first: a flip in the data.
    like, (_, twenty, other) = states
    saved = checkpoints(workdir)
    save(saved, 20, other)
    for name in ("state", "digest"):
        source = two_steps if name == "digest" else workdir
        copy(source / "checkpoints" / "20" / name, tmp_path / "mixed" / name)
    shutil.rmtree(workdir / "checkpoints" / "20")
    shutil.copytree(tmp_path / "mixed", workdir / "checkpoints" / "20")
    found = saved.restore(like)
    assert found.step == 10 and not found.foreign
    assert "extra/" in found.damaged[20]
    assert "does not have the values that were saved" in found.damaged[20]
    # Set aside, not deleted; and a save of that number goes on at once.
    saved.set_aside(20)
    assert (workdir / "checkpoints/abandoned/20.2").is_dir()
    save(saved, 20, twenty)
    assert saved.restore(like).step == 20


def test_what_is_not_of_this_run_is_left_alone(two_steps, states, tmp_path):
    workdir = copy(two_steps, tmp_path / "run")
    folder = workdir / "checkpoints"
    copy(folder / "20", folder / "77")  # a copy under another number
    (folder / "99").mkdir()  # empty
    (folder / "98").mkdir()
    (folder / "98" / "junk").write_text("junk")
    (folder / "best").mkdir()  # no step at all
    (folder / "notes.txt").write_text("mine")
    other = checkpoints(tmp_path / "other", run="b")
    save(other, 88, states[1][2])
    copy(tmp_path / "other" / "checkpoints" / "88", folder / "88")
    before = listing(workdir)

    saved = checkpoints(workdir)
    step, state, _, damaged, foreign = saved.restore(states[0])
    assert step == 20 and digest.sha256(state) == digest.sha256(states[1][1])
    assert not damaged and set(foreign) == {77, 88, 98, 99}
    for number, why in ((77, "holds step 20 under another"), (88, "another run"), (98, "no digest"),
                        (99, "no digest")):  # fmt: skip
        assert foreign[number].startswith(f"checkpoint {number}: ") and why in foreign[number]
    assert listing(workdir) == before and (folder / "best").is_dir() and (folder / "99").is_dir()
    report = {x["step"]: x["status"] for x in checkpoint.verify(workdir, "a")}
    assert report == {20: "verified", 10: "verified", 77: "foreign", 88: "foreign", 98: "foreign",
                      99: "foreign"}  # fmt: skip
    # Saves go on; a name that is needed is freed by moving what has it.
    for number in (30, 77, 88, 99):
        save(saved, number, state)
    assert {p.name for p in folder.iterdir()} == {
        "88", "99", "98", "best", "notes.txt", "abandoned"
    }  # fmt: skip
    assert {p.name for p in (folder / "abandoned").iterdir()} == {"77", "88", "99"}


def test_a_run_without_a_usable_step_does_not_start_anew(two_steps, states, tmp_path):
    workdir = copy(two_steps, tmp_path / "run")
    for path in workdir.rglob("manifest.ocdbt"):
        path.unlink()
    with pytest.raises(checkpoint.CheckpointError, match="(?s)checkpoint 20: .*checkpoint 10: "):
        checkpoints(workdir).restore(states[0])
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"10", "20"}
    assert checkpoints(tmp_path / "new").restore(states[0]) is None


def test_a_step_of_a_config_that_the_run_never_had_is_refused(two_steps, states, tmp_path):
    workdir = copy(two_steps, tmp_path / "run")
    with pytest.raises(ValueError, match="another config"):
        checkpoints(workdir, config="d").restore(states[0])
    found = checkpoints(workdir, config="d", configs=("b", "c", "d")).restore(states[0])
    assert (found.step, found.config) == (20, "c")


def test_steps_newer_than_the_saved_one_do_not_push_it_out(two_steps, states, tmp_path):
    workdir = copy(two_steps, tmp_path / "run")
    saved = checkpoints(workdir, keep=1)
    save(saved, 5, states[1][2])
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"5", "10", "20"}


@pytest.mark.parametrize("kind", ["flip", "cut", "delete"])
def test_an_old_step_stays_until_a_newer_one_reads_back(
    two_steps, states, tmp_path, monkeypatch, kind
):
    workdir = copy(two_steps, tmp_path / "run")
    saved = checkpoints(workdir, keep=1)
    like, (_, twenty, newer) = states

    monkeypatch.setattr(checkpoint, "_sync", partial(hurt, kind=kind))
    saved.save(30, newer)
    problem = saved.settle()
    assert "checkpoint 30" in problem and "set aside" in problem
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"10", "20", "abandoned"}
    monkeypatch.undo()
    save(saved, 40, newer)
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"40", "abandoned"}
    assert saved.restore(like)[0] == 40


def test_a_verified_step_is_finite(states, tmp_path):
    like, (first, *_) = states
    bad = dataclasses.replace(first, extra=jax.tree.map(lambda x: x.at[:].set(np.nan), first.extra))
    save(checkpoints(tmp_path), 1, bad)
    (line,) = checkpoint.verify(tmp_path, "a")
    assert line["status"] == "damaged" and "not finite" in line["problem"]
    assert line["problem"].startswith("extra/")


def test_what_a_kill_left_is_cleared_away(two_steps, states, tmp_path):
    workdir = copy(two_steps, tmp_path / "run")
    folder = workdir / "checkpoints"
    for name in ("30.orbax-checkpoint-tmp", "5.removing", "6.removing.mine", "x.removing"):
        copy(folder / "10", folder / name)
    assert checkpoints(workdir).restore(states[0])[0] == 20
    assert {p.name for p in folder.iterdir()} == {"10", "20", "6.removing.mine", "x.removing"}


def test_parameters_move_along_a_chain_of_resolutions(tmp_path):
    mesh = sharding.make_mesh(data=4, fsdp=2)
    mae = small_mae()
    _, _, init = placed(mae, mesh)
    state = init(rng.key(3, "init"))
    save(checkpoints(tmp_path), 5, state)

    larger = small_mae(image_size=64)
    like, shardings, _ = placed(larger, mesh)
    params, told = checkpoint.load_params(tmp_path, like.params, shardings=shardings.params)
    assert told == "decoder, encoder"
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert all(
        x.sharding == y
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(shardings.params), strict=True)
    )

    wider = small_mae(decoder=dataclasses.replace(mae.decoder, width=16))
    like, shardings, _ = placed(wider, mesh)
    with pytest.raises(ValueError, match=r"decoder/norm/scale is \(8,\) there and \(16,\)"):
        checkpoint.load_params(tmp_path, like.params, shardings=shardings.params)
    encoder = like.params["encoder"]
    gated = {"encoder": {**encoder, "gate": jax.ShapeDtypeStruct((2,), np.float32)}}
    where = {"encoder": {**shardings.params["encoder"], "gate": None}}
    with pytest.raises(ValueError, match="missing encoder/gate"):
        checkpoint.load_params(tmp_path, gated, shardings=where)
    with pytest.raises(ValueError, match="has no checkpoints"):
        checkpoint.load_params(tmp_path / "nowhere", like.params, shardings=shardings.params)
    hurt(tmp_path / "checkpoints/5", "flip")
    like, shardings, _ = placed(larger, mesh)
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints/5: .*(values|read)"):
        checkpoint.load_params(tmp_path, like.params, shardings=shardings.params)


def test_a_state_that_does_not_fit_is_refused_by_name(tmp_path):
    mesh = sharding.make_mesh(data=1, fsdp=1)
    _, _, init = placed(small_mae(), mesh)
    saved = checkpoints(tmp_path)
    save(saved, 1, init(rng.key(0, "init")))
    wider = small_mae(decoder=dataclasses.replace(small_mae().decoder, width=16))
    with pytest.raises(ValueError, match=r"params/decoder/norm/scale is \(8,\) there and \(16,\)"):
        saved.restore(placed(wider, mesh)[0])


def test_frozen_parameters_can_be_loaded_and_trained(tmp_path):
    mesh = sharding.make_mesh(data=1, fsdp=1)
    _, _, init = placed(small_mae(), mesh, optim=optimizer(freeze=(r".*/(bias|scale)",)))
    state = init(rng.key(3, "init"))
    assert state.frozen
    save(checkpoints(tmp_path), 1, state)
    like, shardings, _ = placed(small_mae(), mesh)
    params, _ = checkpoint.load_params(tmp_path, like.params, shardings=shardings.params)
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
