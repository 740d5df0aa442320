"""Nearest neighbours end to end: every film once, scores from the file alone."""

import dataclasses
import json

import numpy as np
import pytest

from tests.test_configs import resolved
from xmae_jax import lock
from xmae_jax.config import ConfigError
from xmae_jax.data.index import read_entries
from xmae_jax.evaluators.knn import scores
from xmae_jax.scores.predictions import from_csv
from xmae_jax.scores.summary import summarise
from xmae_jax.tasks import knn


def made(shards, *, data=(), **fields):
    config = resolved("evaluate_knn", "smoke")
    data = dataclasses.replace(config.data, **{"path": str(shards), **dict(data)})
    asked = dataclasses.replace(config.knn, **fields)
    return dataclasses.replace(config, data=data, knn=asked, image_size=32, batch_size=8)


def run(config, workdir):
    knn.run(config, workdir, allow_config_change=False)


@pytest.fixture(scope="module")
def scored(shards, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("knn") / "run"
    run(made(shards, k=(3, 5, 1000)), workdir)
    return workdir


def test_every_film_is_scored_once_and_the_file_says_it_all(scored, shards):
    folder = scored / "eval" / "knn"
    metrics = json.loads((folder / "metrics.json").read_text())
    predictions = from_csv((folder / "predictions.csv").read_text(), name="predictions.csv")
    entries = read_entries(shards)
    want = [e.id for split in ("val", "test") for e in entries if e.split == split]
    assert [film.id for film in predictions.films] == want
    again = summarise(predictions, "test")
    for name in ("macro_auroc", "macro_average_precision"):
        assert metrics[name] == again[name]
    page = (folder / "report.html").read_text()
    for text in ("nearest by cls features", str(shards), "Films in training too</dt><dd>none"):
        assert text in page
    assert metrics["about"]["leaks"] == {} and metrics["about"]["unreadable_films"] == 0
    assert len(metrics["knn"]["encoder"]) == 64
    about = metrics["knn"]
    train = sum(e.split == "train" for e in entries)
    assert about["references"] == train and [*about["by_k"]] == ["3", "5", str(train)]
    val = {k: of["auroc"] for k, of in about["by_k"].items()}  # test has a score for one k alone
    assert val[str(about["k"])] == max(val.values())
    assert val[str(about["k"])] == summarise(predictions, "val")["macro_auroc"]


def test_fewer_patients_vote(shards, tmp_path, capsys):
    run(made(shards, k=(31,), data={"label_fraction": 0.2}, features="mean"), tmp_path)
    out = capsys.readouterr().out
    about = json.loads((tmp_path / "eval/knn/metrics.json").read_text())["knn"]
    assert f"training on {about['references']} of " in out and "so no k is larger" in out
    assert about["k"] == about["references"] < 31  # all there are; ids, and so films, are drawn


def test_what_cannot_be(shards, tmp_path):
    with pytest.raises(ConfigError, match="config.data.eval_split is None, and k is chosen on it"):
        run(made(shards, data={"eval_split": None}), tmp_path)
    config = made(shards, data={"path": None})
    with pytest.raises(ConfigError, match="config.data.path is not set"):
        run(config, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_is_there_is_not_written_over(scored, shards, tmp_path):
    """Another encoder, a run, and another process each need a directory of their own."""
    before = (scored / "config.json").read_text()
    with pytest.raises(ConfigError, match="config.seed: 0 in the run directory, 1 now"):
        run(dataclasses.replace(made(shards, k=(3, 5, 1000)), seed=1), scored)
    with lock.acquire(scored), pytest.raises(lock.Locked):
        run(made(shards, k=(3, 5, 1000)), scored)
    assert (scored / "config.json").read_text() == before
    for name in ("run.json", "checkpoints/3/x", "notes.txt"):
        place = tmp_path / name[:3] / name
        place.parent.mkdir(parents=True)
        place.write_text("{}")
        with pytest.raises(ConfigError, match="a run is there|not empty, and no run directory"):
            run(made(shards), tmp_path / name[:3])
        assert not (tmp_path / name[:3] / "config.json").exists()


def test_k_is_not_chosen_where_nothing_has_a_score(shards, tmp_path):
    config = made(shards)
    objective = {**config.objective, "findings": ("Hernia",)}
    with pytest.raises(ConfigError, match="no finding is known there both present and absent"):
        run(dataclasses.replace(config, objective=objective), tmp_path)


def test_a_film_beside_itself_is_found():
    """The nearest film of a film is itself: features and labels stand in line."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(50, 8)).astype(np.float32)
    labels = draw.integers(0, 2, size=(50, 3)).astype(np.float32)
    ((_, logits, _),) = scores(features[::-1], features, labels, ks=(1,))
    np.testing.assert_array_equal(logits > 0, labels[::-1] == 1)
