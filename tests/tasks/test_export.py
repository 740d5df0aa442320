"""Exports without other libraries: names, cards, terms, and that they are whole or not there."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from tests.made_runs import make_run
from xmae_jax import config as config_lib
from xmae_jax import exports
from xmae_jax.config import ConfigError, ExportConfig
from xmae_jax.data.manifest import load_manifest, write_manifest
from xmae_jax.exports import provenance
from xmae_jax.exports.terms import term_of
from xmae_jax.models import convert
from xmae_jax.rundir import read_run
from xmae_jax.tasks import export, train
from xmae_jax.tasks.model import load_run

CLS = dict(objective__head=dict(kind="linear", pool="cls", layers=1))


def exported(workdir, config, format, *, public=False, name=None):
    wanted = ExportConfig(format, public, name)
    export.run(dataclasses.replace(config, export=wanted), workdir)
    return workdir / "export" / format


@pytest.fixture(scope="module")
def mae(shards, tmp_path_factory):
    """A masked auto-encoder on phantoms, with an average of its parameters."""
    workdir = tmp_path_factory.mktemp("runs") / "mae"
    return workdir, make_run(workdir, "quickstart", data=shards)


@pytest.fixture(scope="module")
def classifier(mae, shards, tmp_path_factory):
    """A classifier that was begun from it."""
    workdir = tmp_path_factory.mktemp("runs") / "classifier"
    config = make_run(workdir, "finetune_full", data=shards, init_from=str(mae[0]), **CLS)
    return workdir, config


def relicensed(shards, folder, licence, *, masks=None):
    """Copy a data set as one whose films, or masks, have another licence."""
    shutil.copytree(shards, folder)
    manifest = load_manifest(folder)
    manifest.pop("format")
    counts = manifest["counts"]
    films = sum(counts["licences"].values())
    manifest["name"] = folder.name
    manifest["counts"] = counts | (
        {"licences": {licence: films}} if masks is None else {"mask_licences": {masks: films}}
    )
    write_manifest(folder, manifest)
    return folder


def test_names_of_timm_and_mae(mae):
    workdir, config = mae
    folder = exported(workdir, config, "safetensors")
    found = load_file(folder / "quickstart_smoke.safetensors")
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"]
    block += ["attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias"]
    block += ["mlp.fc2.weight", "mlp.fc2.bias"]
    names = {f"{part}blocks.{i}.{n}" for part in ("", "decoder_") for i in range(2) for n in block}
    names |= {"cls_token", "pos_embed", "norm.weight", "norm.bias"}
    names |= {"patch_embed.proj.weight", "patch_embed.proj.bias", "mask_token"}
    names |= {f"decoder_{n}.{p}" for n in ("embed", "norm", "pred") for p in ("weight", "bias")}
    assert found.keys() == names | {"decoder_pos_embed"}
    assert found["patch_embed.proj.weight"].shape == (32, 1, 16, 16)
    assert found["blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert found["pos_embed"].shape == (1, 17, 32) and not found["pos_embed"][0, 0].any()
    run = load_run(workdir)
    assert np.array_equal(found["norm.bias"], run.extra["ema"]["encoder"]["norm"]["bias"])
    assert not np.array_equal(found["norm.bias"], run.params["encoder"]["norm"]["bias"])


def test_names_of_heads(classifier, shards, tmp_path):
    folder = exported(*classifier, "safetensors", name="mine")
    found = load_file(folder / "mine.safetensors")
    params = load_run(classifier[0]).params
    assert np.array_equal(found["head.weight"], params["head"]["out"]["kernel"].T)
    assert np.array_equal(found["head.bias"], params["head"]["out"]["bias"])
    # timm reads CLS by these names, so what reads something else does not take them.
    for i, head in enumerate((dict(pool="mean", layers=1), dict(pool="cls", layers=2))):
        head = dict(objective__head=dict(kind="linear", **head))
        config = make_run(tmp_path / str(i), "finetune_full", data=shards, **head)
        folder = exported(tmp_path / str(i), config, "safetensors", name="a")
        found = load_file(folder / "a.safetensors")
        assert {n for n in found if n.startswith("head")} == {"head.out.kernel", "head.out.bias"}
        card = (folder / "README.md").read_text()
        assert "keep ours: head/out/bias, head/out/kernel" in card and "reads CLS" in card
    attentive = dict(kind="attentive", layers=2, width=16, heads=2)
    config = make_run(tmp_path / "run", "finetune_full", data=shards, objective__head=attentive)
    found = load_file(exported(tmp_path / "run", config, "safetensors", name="a") / "a.safetensors")
    assert {"head.query", "head.key.kernel", "head.out.bias"} <= found.keys()


@pytest.mark.parametrize(
    ("config", "changes", "name", "beside"),
    [
        ("quickstart", {}, "ViTMAEForPreTraining", set()),
        ("quickstart", {"objective__decoder__kind": "cross"}, "ViTModel", {"decoder"}),
        ("finetune_full", CLS, "ViTForImageClassification", set()),
        ("finetune_full", {}, "ViTModel", {"head"}),
        (
            "finetune_full",
            {"objective__encoder__registers": 3, "objective__encoder__mlp": "swiglu", **CLS},
            "Dinov2WithRegistersModel",
            {"head"},
        ),
        ("finetune_full", {"objective__encoder__layer_scale": 0.1}, "Dinov2Model", {"head"}),
    ],
)
def test_hugging_face_folders(tmp_path, config, changes, name, beside, capsys):
    made = make_run(tmp_path / "run", config, **changes)
    folder = exported(tmp_path / "run", made, "hf")
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {p.name for p in folder.iterdir()} == files | {f"{b}.safetensors" for b in beside}
    told = json.loads((folder / "config.json").read_text())
    assert told["architectures"] == [name] and told["num_channels"] == 1
    assert told["layer_norm_eps"] == 1e-6 and told["image_size"] == 64
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    assert (preprocessor["image_mean"], preprocessor["image_std"]) == ([0.5], [0.5])
    with safetensors.safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
    printed = capsys.readouterr().out
    for part in beside:
        assert f"no class with this {part}" in printed
    if name == "ViTForImageClassification":
        assert told["id2label"]["0"] == "Atelectasis"
        assert told["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize("format", ["safetensors", "hf"])
def test_an_export_is_read_back(tmp_path, format):
    """Base grid and epsilon are in no shape."""
    changes = dict(objective__encoder__base_grid=2, objective__encoder__norm_eps=1e-5)
    config = make_run(tmp_path / "run", "quickstart", **changes)
    folder = exported(tmp_path / "run", config, format)
    loaded = load_run(tmp_path / "run")
    path = folder if format == "hf" else next(folder.glob("*.safetensors"))
    foreign = convert.read_foreign(path)
    o = loaded.objective
    there = dataclasses.asdict(o.encoder) | {"layer_scale": False, "resample": "cubic"}
    assert foreign.encoder == there and not foreign.faults.get("decoder")
    want = export.parameters(loaded)
    shapes = {name: x.shape for name, x in want.items()}
    rest = dict(decoder_heads=o.decoder.heads, norm_pix_loss=o.norm_pix_loss)
    params, _ = convert.fit(foreign, shapes, encoder=o.encoder, **rest)
    for name, array in want.items():
        np.testing.assert_allclose(params[name], array, atol=1e-6)
    # Without what we wrote beside it, a file of Hugging Face's names does not say its epsilon.
    arrays = load_file(folder / "model.safetensors") if format == "hf" else {}
    if arrays:
        (tmp_path / "bare").mkdir()
        save_file(arrays, tmp_path / "bare/model.safetensors")
        bare = convert.read_foreign(tmp_path / "bare")
        assert bare.encoder["norm_eps"] is None and bare.encoder["heads"] is None


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_films_are_not_squashed_that_were_padded(mae, shards, tmp_path, fit):
    """Hugging Face's image processor cannot pad."""
    config = make_run(tmp_path / "run", "quickstart", data=shards)
    run = read_run(tmp_path / "run")
    assert run is not None and run.sources[0]["film"]["fit"] == "pad"
    film = {**run.sources[0]["film"], "fit": fit}
    dataclasses.replace(run, sources=[{**run.sources[0], "film": film}]).write()
    folder = exported(tmp_path / "run", config, "hf")
    told = json.loads((folder / "preprocessor_config.json").read_text())
    assert told["do_resize"] == (fit == "squash")
    card = (folder / "README.md").read_text()
    assert ("centred on black before it is resized" in card) == (fit == "pad")


def test_the_released_stem_has_no_class_there(tmp_path):
    stem = dict(objective__encoder__patch_size=64, objective__encoder__stem="conv", image_size=256)
    config = make_run(tmp_path / "run", "finetune_full", **stem)
    with pytest.raises(ConfigError, match="no class for an encoder whose stem is 'conv'"):
        exported(tmp_path / "run", config, "hf")
    found = load_file(next(exported(tmp_path / "run", config, "safetensors").glob("*.safetensors")))
    assert found["patch_embed.conv1.weight"].shape == (32, 1, 16, 16)
    assert found["patch_embed.conv2.weight"].shape == (32, 32, 4, 4)


@pytest.mark.parametrize("form", ["safetensors", "hf"])
def test_a_hybrid_stem_has_names_nowhere(tmp_path, form):
    config = make_run(tmp_path / "run", "finetune_full", objective__encoder__stem="hybrid")
    with pytest.raises(ConfigError, match="hybrid"):
        exported(tmp_path / "run", config, form)


def test_the_card_tells_data_licences_digests_and_scores(classifier, mae):
    workdir, config = classifier
    for step, auroc in ((2, 0.1), (7, 0.75)):
        entry = dict(n_positive=3, n_negative=40, auroc=auroc, auroc_interval=[0.625, 0.875])
        entry |= dict(average_precision=None, average_precision_interval=None)
        entry["threshold"] = dict(probability=0.25, sensitivity=0.5, sensitivity_interval=[0, 1])
        metrics = dict(split="test", films=43, patients=41, findings={"Nodule": entry}, macro={})
        metrics["about"] = dict(
            own_data=False,
            data=["/secret/others"],
            leaks={"same_pixels": 3},
            refitted_on=None,
        )
        where = workdir / f"eval/classification_test/step_{step}"
        where.mkdir(parents=True, exist_ok=True)
        (where / "metrics.json").write_text(json.dumps(metrics))
    card = (exported(workdir, config, "safetensors") / "README.md").read_text()
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "pipeline_tag: image-classification" in head and "chest-x-ray" in head
    assert "Not a medical device" in text
    assert (
        "| Nodule | 3 | 40 | 0.750 (0.625 to 0.875) | undefined | 0.2500 | 0.500 (0.000 to" in text
    )
    assert "0.100" not in text and "/secret" not in text
    assert "of other data than the run's: others." in text
    assert "In training too, not refused: 3 x same pixels" in text
    assert "CC0-1.0: 40" in text and "train: 31" in text
    for origin in (provenance.origin_of_run(path, step=7) for path in (workdir, mae[0])):
        for digest in (origin.config_digest, origin.weights_digest, origin.data[0].digest):
            assert f"`{digest[:16]}`" in text
    assert "quickstart\\_smoke" in text


def test_names_of_data_sets_are_text_in_a_card(shards, tmp_path):
    data = relicensed(shards, tmp_path / "films", "<script>alert(1)</script>|[x](y)")
    config = make_run(tmp_path / "run", "quickstart", data=data)
    card = (exported(tmp_path / "run", config, "safetensors") / "README.md").read_text()
    assert "\\<script\\>" in card and "<script" not in card.replace("\\<script", "")
    assert "\\|\\[x\\](y)" in card


def test_phantoms_may_be_public_along_the_chain(classifier, capsys):
    workdir, config = classifier
    exported(workdir, config, "safetensors", public=True)
    assert "not for the public" not in capsys.readouterr().out
    file = next((workdir / "export/safetensors").glob("*.safetensors"))
    found = provenance.origin_of_file(file)
    assert found.refusals() == [] and [one.step for one in found.chain()] == [7, 7]
    assert found.chain()[0].data[0].licences == {"CC0-1.0": 40}


@pytest.mark.parametrize(
    ("licence", "masks", "why"),
    [
        ("PhysioNet Credentialed Health Data License 1.5.0", None, "credentialed"),
        ("CC BY-NC-SA 4.0", None, "non-commercial use only and what is derived"),
        ("CC-BY-NC-ND-4.0", None, "non-commercial use only and no derivatives"),
        ("my own", None, "not known to allow it"),
        ("", None, "no licence that is known"),
        (None, "CC-BY-NC-SA-4.0", "lung masks under CC-BY-NC-SA-4.0"),
    ],
)
def test_public_is_refused_by_name_of_data_set_and_licence(shards, tmp_path, licence, masks, why):
    data = relicensed(shards, tmp_path / "hospital", licence, masks=masks)
    config = make_run(tmp_path / "run", "quickstart", data=data)
    with pytest.raises(ConfigError, match=why) as error:
        exported(tmp_path / "run", config, "safetensors", public=True)
    assert "data set 'hospital'" in str(error.value) and (licence or masks or "") in str(
        error.value
    )
    assert not (tmp_path / "run/export").exists()
    card = (exported(tmp_path / "run", config, "safetensors") / "README.md").read_text()
    assert "Not for the public" in card and "may not be given to the public" in card


def test_public_is_refused_for_what_a_run_was_begun_from(shards, tmp_path):
    data = relicensed(shards, tmp_path / "hospital", "CC BY-NC 4.0")
    first = make_run(tmp_path / "first", "quickstart", data=data)
    second = make_run(
        tmp_path / "run", "finetune_full", data=shards, init_from=str(tmp_path / "first")
    )
    with pytest.raises(ConfigError, match=r"CC BY-NC 4\.0: non-commercial use only \(by init_from"):
        exported(tmp_path / "run", second, "safetensors", public=True)
    # A file that was exported tells of its own terms; one of others does not.
    file = next(exported(tmp_path / "first", first, "safetensors").glob("*.safetensors"))
    third = make_run(tmp_path / "third", "finetune_full", data=shards, init_from=str(file))
    with pytest.raises(ConfigError, match=r"'hospital': 40 films under CC BY-NC 4\.0"):
        exported(tmp_path / "third", third, "safetensors", public=True)
    (tmp_path / "foreign.pth").write_bytes(b"weights")
    fourth = make_run(
        tmp_path / "fourth", "finetune_full", data=shards, init_from=str(tmp_path / "foreign.pth")
    )
    with pytest.raises(ConfigError, match=r"file 'foreign.pth': the data .* are not known"):
        exported(tmp_path / "fourth", fourth, "safetensors", public=True)


def test_public_is_refused_where_the_data_are_gone(shards, tmp_path):
    config = make_run(
        tmp_path / "run", "quickstart", data=shutil.copytree(shards, tmp_path / "set")
    )
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(ConfigError, match="data set 'set': not there"):
        exported(tmp_path / "run", config, "safetensors", public=True)


def test_public_is_refused_for_data_that_were_there_before(shards, tmp_path):
    """Replacing a data set, or its licences, does not make weights free."""
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    relicensed(shards, tmp_path / "set", licence)
    config = make_run(tmp_path / "run", "quickstart", data=tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    shutil.copytree(shards, tmp_path / "set")
    with pytest.raises(ConfigError, match=licence):
        exported(tmp_path / "run", config, "safetensors", public=True)


def test_public_is_refused_for_other_data_than_those_trained_on(shards, tmp_path):
    data = shutil.copytree(shards, tmp_path / "set")
    config = make_run(tmp_path / "run", "quickstart", data=data)
    exported(tmp_path / "run", config, "safetensors", public=True)
    manifest = load_manifest(data)
    manifest.pop("format")
    (file, *_) = [entry for entry in manifest["files"] if entry["split"] == "train"]
    file["sha256"] = "0" * 64
    write_manifest(data, manifest)
    with pytest.raises(ConfigError, match="not what the run was trained on"):
        exported(tmp_path / "run", config, "safetensors", public=True)


def test_public_is_refused_for_a_run_that_did_not_write_its_data(shards, tmp_path):
    config = make_run(tmp_path / "run", "quickstart", data=shards)
    run = read_run(tmp_path / "run")
    assert run is not None
    dataclasses.replace(run, trained_on=None).write()
    with pytest.raises(ConfigError, match="run.json, of an older version or missing"):
        exported(tmp_path / "run", config, "safetensors", public=True)


def test_a_run_on_a_part_of_the_films_is_no_other_data(shards, tmp_path):
    """`sources` has the digest of the rows that were drawn, `trained_on` that of the records."""
    config = make_run(tmp_path / "run", "finetune_full", data=shards, data__label_fraction=0.5)
    run = read_run(tmp_path / "run")
    assert run is not None
    digest = train.open_objective(config)[1].digests[0]
    dataclasses.replace(run, sources=[{**run.sources[0], "digest": digest}]).write()
    exported(tmp_path / "run", config, "safetensors", public=True)


def test_a_circle_of_runs_ends(shards, tmp_path):
    make_run(tmp_path / "run", "quickstart", data=shards, init_from=str(tmp_path / "run"))
    assert len(provenance.origin_of_run(tmp_path / "run", step=7).chain()) == 1


@pytest.mark.parametrize(
    ("licence", "public"),
    [
        ("CC BY 4.0", True),
        ("CC-BY-4.0", True),
        ("NLM-public-use (cite Jaeger 2014)", True),
        ("NIH-no-restrictions (CC0-like, attribution requested)", True),
        ("CC BY 4.0 (non-commercial use only)", False),
        ("CC BY 4.0 (NC)", False),
        ("CC0-1.0 (research only, no redistribution)", False),
        ("NLM-public-use (not for models)", False),
        ("CC BY 4.0 \u975e\u5546\u7528", False),  # "non-commercial"
        ("CC BY-SA", False),
        ("Creative Commons Attribution-NonCommercial", False),
        ("Stanford University Dataset Research Use Agreement", False),
        ("CC", False),
        ("nd", False),
    ],
)
def test_terms(licence, public):
    assert term_of(licence).public == public


@pytest.mark.parametrize("name", ["a/b", "..", "../x", ".hidden", "", "a\nb"])
def test_a_name_is_one_word(name):
    with pytest.raises(ConfigError, match="name"):
        config_lib.build(ExportConfig, dict(format="hf", public=False, name=name))


def test_an_export_is_whole_or_not_there(mae, monkeypatch):
    workdir, config = mae
    folder = exported(workdir, config, "hf")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(export.card, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        exported(workdir, config, "hf")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert sorted(p.name for p in (workdir / "export").iterdir() if "hf" in p.name) == ["hf"]


def test_the_old_files_go(mae):
    workdir, config = mae
    exported(workdir, config, "safetensors", name="one")
    folder = exported(workdir, config, "safetensors", name="two")
    assert {p.name for p in folder.iterdir()} == {"README.md", "two.safetensors"}


def test_onnx_says_what_it_needs(mae, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    # Both places in which Python looks for a module that was imported before.
    monkeypatch.delitem(sys.modules, "xmae_jax.exports.graph", raising=False)
    monkeypatch.delattr(exports, "graph", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'xmae_jax\[convert\]'"):
        exported(*mae, "onnx")
    assert not (mae[0] / "export/onnx").exists()


def test_a_run_without_an_encoder_is_refused(tmp_path):
    config = make_run(tmp_path / "run", "segment_lungs")
    with pytest.raises(ConfigError, match="'segment' has no encoder"):
        exported(tmp_path / "run", config, "hf")


def test_what_export_is_asked_is_no_part_of_a_run(shards, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def see(config):
        raise Seen(config.export)

    config = make_run(tmp_path / "run", "quickstart", data=shards)
    monkeypatch.setattr(train, "open_objective", see)
    changed = dataclasses.replace(config, export=ExportConfig("onnx", True, "x"))
    with pytest.raises(Seen) as seen:
        train.run(changed, tmp_path / "run", allow_config_change=False, allow_fresh=False)
    assert seen.value.args[0] == config.export
