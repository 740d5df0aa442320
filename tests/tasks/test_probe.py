"""The frozen probe from films to a tested run, interrupted and gone on with."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.test_configs import resolved
from xmae_jax.config import ConfigError, objective_of, to_json
from xmae_jax.data.features import (
    FeatureSource,
    FeatureView,
    place_of_features,
    standardisation,
    write_features,
)
from xmae_jax.data.findings import FINDINGS
from xmae_jax.data.index import read_entries, write_index
from xmae_jax.data.manifest import DataError, file_digest, load_manifest, write_manifest
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.optim import Grid
from xmae_jax.scores.predictions import from_csv
from xmae_jax.tasks import probe, train
from xmae_jax.tasks.features import what_to_read
from xmae_jax.tasks.held_out import Model
from xmae_jax.tasks.members import macro
from xmae_jax.tasks.model import load_run
from xmae_jax.tasks.phase import Protocol
from xmae_jax.tasks.split import class_stats, open_split

KEY = {"encoder": "abc", "split": "train"}


def rows(count=5, *, seed=0, poison=False):
    """Yield features of all records but the third, which could not be read."""
    draw = np.random.default_rng(seed)
    for i in range(count):
        pooled = draw.normal(3.0, 2.0, size=(2, 2, 4)).astype(np.float32)
        pooled[0, 0, 0] = np.inf if poison and i == 4 else pooled[0, 0, 0]
        labels = np.full(len(FINDINGS), np.nan, np.float32)
        labels[i] = 1.0
        if i != 2:
            yield i, f"film{i}", {"pooled": pooled, "labels": labels}


def test_features_are_a_source(tmp_path):
    write_features(place_of_features(tmp_path, KEY), KEY, rows(), count=5)
    source = FeatureSource(place_of_features(tmp_path, KEY), KEY)
    assert len(source) == 5 and [p.name for p in tmp_path.iterdir()] == [source.directory.name]
    want = dict((i, arrays) for i, _, arrays in rows())
    # A copy goes by the state that a worker process is sent.
    for other in (source, copy.copy(source)):
        for i in (0, 4):
            assert other[i]["id"] == f"film{i}"
            np.testing.assert_array_equal(other[i]["pooled"], want[i]["pooled"])
    with pytest.raises(DataError, match="features 2.*damaged"):
        source[2]
    mean, deviation = standardisation([source], [np.arange(5)])
    pooled = np.stack([want[i]["pooled"] for i in (0, 1, 3, 4)]).astype(float)
    np.testing.assert_allclose(mean, pooled.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, np.sqrt(pooled.var(0) + 1e-6), rtol=1e-6)
    view = FeatureView((FINDINGS[4], FINDINGS[0]), mean, deviation)
    example = view(source[0], np.random.default_rng(0))
    np.testing.assert_array_equal(example["labels"], np.array([np.nan, 1.0], np.float32))
    np.testing.assert_allclose(example["pooled"], (want[0]["pooled"] - mean) / deviation)
    weighted, _ = standardisation([source], [np.array([0, 0, 1])])
    np.testing.assert_allclose(weighted, pooled[[0, 0, 1]].mean(0), rtol=1e-6)


def test_features_that_are_not_what_was_written_are_refused(tmp_path):
    write_features(place_of_features(tmp_path, KEY), KEY, rows(), count=5)
    place = place_of_features(tmp_path, KEY)
    with pytest.raises(DataError, match="another encoder"):
        FeatureSource(place, {**KEY, "encoder": "other"})
    whole = (place / "pooled.npy").read_bytes()
    (place / "pooled.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="pooled.npy: not the file that was written"):
        FeatureSource(place, KEY)
    about = place / "features.json"
    about.write_text(about.read_text().replace("abc", "abd"))
    with pytest.raises(DataError, match="edited"):
        FeatureSource(place, KEY)


def test_features_written_half_are_not_there(tmp_path):
    with pytest.raises(DataError, match="film4: the encoder's pooled are not finite"):
        write_features(place_of_features(tmp_path, KEY), KEY, rows(poison=True), count=5)
    assert not place_of_features(tmp_path, KEY).exists() and len([*tmp_path.iterdir()]) == 1
    write_features(place_of_features(tmp_path, KEY), KEY, rows(), count=5)
    assert len([*tmp_path.iterdir()]) == 1


@pytest.fixture(scope="module")
def config(shards):
    small = resolved("finetune_linear", "smoke")
    encoder = {**small.objective["encoder"], "width": 24, "depth": 2, "heads": 2}
    return dataclasses.replace(
        small,
        total_steps=12,
        batch_size=8,
        mesh=dataclasses.replace(small.mesh, data=1),
        data=dataclasses.replace(small.data, path=str(shards)),
        objective={**small.objective, "encoder": encoder},
        # The last rate is beyond float32.
        probe=dataclasses.replace(small.probe, grid=Grid((0.3, 3.0, 1e38), (0.0,))),
    )


def run(config, workdir):
    train.run(config, workdir, allow_config_change=False, allow_fresh=False)


def final(workdir: Path):
    return json.loads((workdir / "final.json").read_text())


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probe") / "run"
    run(config, workdir)
    return workdir


def test_a_probe_ends_as_an_ordinary_run(config, done):
    told = json.loads((done / "probe.json").read_text())
    alive = [member["alive"] for member in told["members"]]
    assert alive == [True, True, False] and told["members"][2]["auroc"] is None
    scores = [member["auroc"] for member in told["members"][:2]]
    assert told["winner"] == int(np.argmax(scores))
    events = [json.loads(line) for line in (done / "grid/metrics.jsonl").read_text().splitlines()]
    assert [e["member"] for e in events if e.get("event") == "dead_member"] == [2]
    loaded = load_run(done)
    assert loaded.step == config.total_steps and set(loaded.frozen) == {"encoder"}
    assert loaded.params["head"]["out"]["kernel"].shape == (48, 7)
    (scored,) = (done / "eval/classification_test").glob("step_*/metrics.json")
    assert json.loads(scored.read_text())["split"] == "test"
    table = (scored.parent / "predictions.csv").read_text().splitlines()[1:]
    assert {line.partition(",")[0] for line in table} == {"val", "test"}


@pytest.mark.parametrize(
    "lost", [("final.json", "refit"), ("final.json", "refit", "grid", "cache")]
)
def test_a_probe_goes_on_where_it_was(config, done, lost, tmp_path, capsys, monkeypatch):
    phases = {}

    def phase(protocol, name, data, **options):
        phases[name] = protocol.objective.class_stats
        return whole(protocol, name, data, **options)

    whole = Protocol.phase
    monkeypatch.setattr(Protocol, "phase", phase)
    shutil.copytree(done, tmp_path / "run")
    for name in lost:
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(config, tmp_path / "run")
    assert final(tmp_path / "run")["sha256"] == final(done)["sha256"]
    assert ("found in" in capsys.readouterr().out) == ("cache" not in lost)
    findings = tuple(config.objective["findings"])
    train_films, val_films = (open_split(config, n, findings=findings) for n in ("train", "val"))
    assert phases["grid"] == class_stats(train_films)
    assert phases["refit"] == class_stats(train_films, val_films) != phases["grid"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(batch_size=1), "batch_size: 1 is less than a row for each of the 2 shard"),
        (dict(findings=("Hernia",)), "eval_split: on 'val' is chosen, and no finding is known"),
    ],
)
def test_what_would_fail_after_the_grid_is_found_before(config, tmp_path, change, words):
    change = dict(change)
    if findings := change.pop("findings", None):
        change["objective"] = {**config.objective, "findings": findings}
    with pytest.raises(ConfigError, match=words):
        run(dataclasses.replace(config, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_few_labels_without_a_source(config, done, shards, tmp_path):
    """The grid's winner is kept, and the source that is left out is tested on alone."""
    other = tmp_path / "shards"
    shutil.copytree(shards, other)
    entries = [
        entry._replace(source="other, 2/2" if i % 2 else entry.source)
        for i, entry in enumerate(read_entries(shards))
    ]
    write_index(other, entries)
    manifest = load_manifest(other)
    manifest["metadata"]["index.csv"] = file_digest(other / "index.csv")
    write_manifest(other, manifest)
    data = dataclasses.replace(
        config.data, path=str(other), label_fraction=0.7, leave_out_source="other, 2/2"
    )
    cache = dataclasses.replace(config.cache, dir=str(done / "cache"))
    few, workdir = dataclasses.replace(config, data=data, cache=cache), tmp_path / "run"
    run(few, workdir)
    assert not (workdir / "refit").exists()
    assert json.loads((workdir / "probe.json").read_text())["refitted"] is False
    (scored,) = (workdir / "eval/classification_test").glob("step_*/predictions.csv")
    films = from_csv(scored.read_text(), name="predictions.csv")
    for split in ("val", "test"):
        tested = split == "test"
        want = [e.id for e in entries if e.split == split and (e.source == "other, 2/2") == tested]
        assert want and [film.id for film in films.of_split(split).films] == want
    (trained,) = json.loads((workdir / "grid/run.json").read_text())["sources"]
    whole = sum(e.split == "train" and e.source != "other, 2/2" for e in entries)
    assert 0 < trained["records"] < whole
    # What the winner said of standardised features, the folded head says of films.
    loaded = load_run(workdir)
    held_out = open_split(few, "val", findings=loaded.objective.findings)
    logits = [row["logits"] for row in Model(loaded, loaded.config).rows(held_out, "logits")]
    np.testing.assert_allclose(logits, films.of_split("val").logits, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_probe_that_reads_films(config, tmp_path, monkeypatch):
    """The encoder runs at every step, and has to be the same one when the probe goes on."""
    head = dict(kind="attentive", layers=1, width=8, heads=2)
    small = dataclasses.replace(
        config,
        total_steps=2,
        cache=dataclasses.replace(config.cache, max_gb=0.0),
        objective={**config.objective, "head": head},
        probe=dataclasses.replace(config.probe, grid=Grid((0.3, 3.0), (0.0,))),
    )
    run(small, tmp_path)
    assert not (tmp_path / "cache").exists()
    assert set(load_run(tmp_path).frozen) == {"encoder"}
    (tmp_path / "final.json").unlink()
    monkeypatch.setattr(probe, "encoder_digest", lambda params: "another")
    with pytest.raises(ConfigError, match="grid was begun with another config, encoder or data"):
        run(small, tmp_path)


@pytest.mark.parametrize(("pool", "reads"), [("cls_mean", "pooled"), ("mean_max", "patches")])
def test_a_maximum_over_patches_is_not_made_of_means(config, pool, reads):
    one = dataclasses.replace(config, objective={**config.objective, "head": dict(
        kind="linear", pool=pool, layers=1)})  # fmt: skip
    objective = objective_of(one, OBJECTIVES)
    assert what_to_read(one, objective, films=10, say=print) == reads


def test_a_finished_probe_and_a_changed_one(config, done, capsys):
    run(config, done)
    assert "done before" in capsys.readouterr().out
    grid = dataclasses.replace(config.probe, grid=Grid((0.3, 1.0, 1e38), (0.0,)))
    with pytest.raises(ConfigError, match="config.probe.grid.blr"):
        run(dataclasses.replace(config, probe=grid), done)


def test_the_encoder_is_that_of_the_run(config, tmp_path):
    """Settings are taken from a run, whatever the config says, and not from anything else."""
    assert probe.with_encoder(config) == config
    foreign = dataclasses.replace(config, init_from=str(tmp_path))
    assert probe.with_encoder(foreign) == foreign
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(to_json(resolved("pretrain_640")))
    taken = probe.with_encoder(foreign)
    assert taken.objective["encoder"] == resolved("pretrain_640").objective["encoder"]
    assert {**taken.objective, "encoder": None} == {**config.objective, "encoder": None}
    (tmp_path / "config.json").write_text(to_json(resolved("segment_lungs")))
    with pytest.raises(ConfigError, match="has no encoder"):
        probe.with_encoder(foreign)


def test_macro_leaves_out_what_is_undefined():
    logits = np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 3.0, 0.0]])
    labels = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, np.nan, -1.0]])
    auroc, average = macro(logits, labels)
    assert (auroc, average) == (0.5, 0.75)
    assert macro(logits, np.full((3, 3), np.nan)) == (None, None)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("data", dict(eval_split=None), "data.eval_split, which is None"),
        ("data", dict(crop_scale=(0.5, 1.0)), "set data.crop_scale to None"),
        ("optim", dict(grid=Grid((1.0,), (0.0,))), "optim.grid has several"),
    ],
)
def test_what_a_probe_has_no_use_for_is_refused(part, change, words):
    small = resolved("finetune_linear", "smoke")
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(small, **{part: dataclasses.replace(getattr(small, part), **change)})
