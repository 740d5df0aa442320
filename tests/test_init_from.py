"""First parameters from another run or a weights file, part by part."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers import small_encoder, small_mae
from tests.models.test_convert import state_dict
from tests.objectives.test_report import small as small_report
from tests.objectives.test_supervised import small
from tests.runs import command, finish
from tests.test_checkpoint import checkpoints, placed, save
from xmae_jax import init_from, rng, sharding
from xmae_jax.digest import flatten
from xmae_jax.heads.report import ResamplerConfig
from xmae_jax.objectives.probe import Probe


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=4, fsdp=2)


def wanted(objective, mesh):
    like, shardings, _ = placed(objective, mesh)
    return dict(params=like.params, shardings=shardings.params, objective=objective)


def test_an_encoder_goes_from_pretraining_to_recognition(tmp_path, mesh):
    mae = small_mae(ema_decay=0.5)
    _, _, init = placed(mae, mesh)
    state = init(rng.key(3, "init"))
    average = jax.tree.map(lambda x: x + 1, state.params)
    save(checkpoints(tmp_path), 5, dataclasses.replace(state, extra={"ema": average}))
    classifier = small(encoder=small_encoder(), image_size=32)
    loaded, told = init_from.load(str(tmp_path), **wanted(classifier, mesh))
    assert told == [
        f"parameters from {tmp_path}: encoder; decoder left out (averages); head starts anew"
    ]
    assert loaded.keys() == {"encoder"}
    # Evaluation saw the average, so that is what goes on.
    jax.tree.map(np.testing.assert_array_equal, loaded["encoder"], average["encoder"])
    deeper = small(encoder=small_encoder(depth=3), image_size=32)
    with pytest.raises(ValueError, match=r"norm1/scale is \(2, 16\) there and \(3, 16\) here"):
        init_from.load(str(tmp_path), **wanted(deeper, mesh))
    gated = small(encoder=small_encoder(mlp="swiglu"), image_size=32)
    with pytest.raises(
        ValueError, match="extra encoder/blocks/mlp/up/bias.*missing encoder/blocks"
    ):
        init_from.load(str(tmp_path), **wanted(gated, mesh))


def test_a_head_goes_on_for_the_same_findings_alone(tmp_path, mesh):
    """Heads of equal shapes may answer for other findings, or be many side by side."""
    old = small(encoder=small_encoder(), image_size=32)
    _, _, init = placed(old, mesh)
    save(checkpoints(tmp_path), 5, init(rng.key(3, "init")))
    told = {"head": dataclasses.asdict(old.head), "findings": old.findings}
    (tmp_path / "config.json").write_text(json.dumps({"objective": told}))

    def parts(objective):
        loaded, lines = init_from.load(str(tmp_path), **wanted(objective, mesh))
        assert ("head starts anew" in lines[0]) == ("head" not in loaded)
        return loaded.keys()

    assert parts(old) == {"encoder", "head"}
    # A run's config has names as they were given.
    named = {**told, "findings": [name.upper() for name in old.findings]}
    (tmp_path / "config.json").write_text(json.dumps({"objective": named}))
    assert parts(old) == {"encoder", "head"}
    other = dataclasses.replace(old, findings=("Nodule", "Edema", "Mass"))
    assert parts(other) == {"encoder"}
    for members in (None, 2):
        assert parts(Probe(old, "films", members)) == {"encoder"}


def test_settings_that_shapes_do_not_show_are_another_runs_too(tmp_path, mesh):
    old = small_mae()
    _, _, init = placed(old, mesh)
    save(checkpoints(tmp_path), 5, init(rng.key(3, "init")))
    told = {"encoder": dataclasses.asdict(old.encoder)}
    (tmp_path / "config.json").write_text(json.dumps({"objective": told}))
    init_from.load(str(tmp_path), **wanted(small(encoder=old.encoder, image_size=32), mesh))
    encoder = dataclasses.replace(old.encoder, base_grid=14, norm_eps=1e-12)
    with pytest.raises(ValueError, match="encoder.base_grid is 14 here") as error:
        init_from.load(str(tmp_path), **wanted(small(encoder=encoder, image_size=32), mesh))
    assert "config.objective.encoder.norm_eps is 1e-12 here and 1e-06 there" in str(error.value)


def test_a_weights_file_lies_as_the_mesh_says(tmp_path, mesh):
    save_file(state_dict(channels=3), tmp_path / "model.safetensors")
    objective = small(encoder=small_encoder(base_grid=3), image_size=32)
    init_from.check(str(tmp_path))
    loaded, told = init_from.load(str(tmp_path), **wanted(objective, mesh))
    file = tmp_path / "model.safetensors"
    assert told[0] == f"parameters from {file} (TIMM): encoder; head starts anew"
    assert "ImageNet" in told[1]
    where = flatten(wanted(objective, mesh)["shardings"])
    for name, array in flatten(loaded).items():
        assert array.sharding == where[name] and array.dtype == np.float32
    with pytest.raises(ValueError, match="encoder.width is 32 here and 16 there"):
        other = small(encoder=small_encoder(base_grid=3, width=32), image_size=32)
        init_from.load(str(tmp_path), **wanted(other, mesh))
    with pytest.raises(ValueError, match="has no checkpoints, and is no weights file"):
        init_from.check(str(tmp_path / "nowhere"))


def test_a_run_begins_with_a_file_or_says_what_to_set(shards, tmp_path):
    folder = tmp_path / "public"
    folder.mkdir()
    arrays = state_dict(channels=3, width=192, depth=4, patch=16, grid=8)
    save_file(arrays, folder / "model.safetensors")
    config = {"layer_norm_eps": 1e-12, "num_attention_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    argv = command(shards, tmp_path / "run", "--config.total_steps=1")
    argv += [f"--config.init_from={folder}"]
    code, out = finish(argv)
    assert code == 64 and "config.objective.encoder.norm_eps is 1e-06 here and 1e-12" in out, out
    assert not (tmp_path / "run/metrics.jsonl").exists()
    code, out = finish([*argv, "--config.objective.encoder.norm_eps=1e-12"])
    assert code == 0, out
    assert "(TIMM): encoder; decoder starts anew" in out


def test_fine_tuning_takes_the_encoder_of_a_run(shards, reference, tmp_path):
    argv = [
        sys.executable, "-m", "xmae_jax.main", "--config=configs/finetune_full.py:smoke",
        f"--config.data.path={shards}", f"--workdir={tmp_path / 'run'}", "--config.total_steps=1",
        f"--config.init_from={reference}", "--config.data.eval_split=None",
    ]  # fmt: skip
    code, out = finish(argv)
    assert code == 0, out
    assert f"the encoder is that of {reference}, not of the config" in out
    assert "encoder; decoder left out" in out
    runs = (tmp_path / "run", reference)
    saved, there = (json.loads((run / "config.json").read_text()) for run in runs)
    assert saved["objective"]["encoder"] == there["objective"]["encoder"]


def t5_arrays(config):
    """Draw a T5 as Hugging Face stores it, with some of its encoder."""
    c, inner = config, config.heads * config.head_width
    block = {
        "layer.0.layer_norm": (c.width,),
        **{f"layer.0.SelfAttention.{n}": (inner, c.width) for n in "qkv"},
        "layer.0.SelfAttention.o": (c.width, inner),
        "layer.1.layer_norm": (c.width,),
        **{f"layer.1.EncDecAttention.{n}": (inner, c.width) for n in "qkv"},
        "layer.1.EncDecAttention.o": (c.width, inner),
        "layer.2.layer_norm": (c.width,),
        "layer.2.DenseReluDense.wi": (c.hidden, c.width),
        "layer.2.DenseReluDense.wo": (c.width, c.hidden),
    }
    shapes = {f"decoder.block.{i}.{n}": s for i in range(c.depth) for n, s in block.items()}
    relative = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    shapes |= {"shared": (c.vocab, c.width), relative: (c.buckets, c.heads)}
    shapes |= {"decoder.final_layer_norm": (c.width,), "encoder.final_layer_norm": (c.width,)}
    shapes |= {} if c.tied else {"lm_head": (c.vocab, c.width)}
    draw = np.random.default_rng(0)
    return {f"{n}.weight": draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def report_run(folder, objective, mesh, seed):
    _, _, init = placed(objective, mesh)
    state = init(rng.key(seed, "init"))
    save(checkpoints(folder), 5, state)
    told = {"encoder": dataclasses.asdict(objective.encoder)}
    told["head"] = dataclasses.asdict(objective.head)
    folder.joinpath("config.json").write_text(json.dumps({"objective": told}))
    return state.params


def test_a_decoder_comes_from_another_run_than_the_encoder(tmp_path, mesh):
    texts = small_report(encoder=small_encoder(width=8))  # its encoder was never used
    warm = report_run(tmp_path / "warm", texts, mesh, 3)
    mae = small_mae()
    _, _, init = placed(mae, mesh)
    pretrained = init(rng.key(4, "init"))
    save(checkpoints(tmp_path / "mae"), 5, pretrained)
    both = small_report(encoder=small_encoder(), image_size=32, decoder_from=str(tmp_path / "warm"))
    want = wanted(both, mesh)
    loaded, told = init_from.load_all(str(tmp_path / "mae"), **want)
    equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    equal(loaded["encoder"], pretrained.params["encoder"])
    equal(loaded["head"]["decoder"], warm["head"]["decoder"])
    assert loaded["head"]["projection"] is want["params"]["head"]["projection"]
    assert len(told) == 2 and told[1].startswith(f"decoder from {tmp_path / 'warm'}: ")
    # A whole run goes on with its head, unless that is another.
    loaded, _ = init_from.load_all(str(tmp_path / "warm"), **wanted(texts, mesh))
    equal(loaded, warm)
    resampled = small_report(
        encoder=small_encoder(width=8), resampler=ResamplerConfig(queries=4, heads=2)
    )
    loaded, told = init_from.load_all(str(tmp_path / "warm"), **wanted(resampled, mesh))
    assert loaded.keys() == {"encoder"} and "head starts anew" in told[0]
    assert init_from.load_all(None, **wanted(texts, mesh)) == ({}, [])


def test_a_decoder_that_does_not_fit_is_named(tmp_path, mesh):
    report_run(tmp_path, small_report(), mesh, 3)
    wide = small_report(decoder_from=str(tmp_path), decoder=dict(hidden=32))
    with pytest.raises(ValueError, match="^objective.decoder_from: .*mlp/down/kernel is"):
        init_from.load_all(None, **wanted(wide, mesh))


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_comes_from_public_weights(tmp_path, mesh, tied):
    sizes = dict(tied=tied, width=24, heads=4, gated=False)
    own = small_report(decoder_from=str(tmp_path), decoder=sizes)
    arrays = t5_arrays(own.head.decoder)
    save_file(arrays, tmp_path / "model.safetensors")
    told = {"feed_forward_proj": "relu", "tie_word_embeddings": tied, "dropout_rate": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(told))
    init_from.check(str(tmp_path))
    loaded, lines = init_from.load_all(None, **wanted(own, mesh))
    found = flatten(loaded["head"]["decoder"])
    np.testing.assert_array_equal(found["embedding"], arrays["shared.weight"])
    q = arrays["decoder.block.1.layer.1.EncDecAttention.q.weight"]
    np.testing.assert_array_equal(found["blocks/cross/q/kernel"][1].reshape(24, -1), q.T)
    where = flatten(wanted(own, mesh)["shardings"]["head"]["decoder"])
    assert all(array.sharding == where[name] for name, array in found.items())
    assert lines[0] == f"decoder from {tmp_path / 'model.safetensors'}"
