"""Reports of studies as they come: films put together by study, and nothing that stops the rest.

The model is noise; what it writes of a study is compared with what it writes of its record.
"""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from data_prep import build, phantoms
from tests.made_runs import make_run
from xmae_jax import infer, rng, sharding
from xmae_jax.config import ConfigError
from xmae_jax.data.film import FilmError
from xmae_jax.data.records import NO_REPORT
from xmae_jax.data.studies import open_studies
from xmae_jax.data.text import Tokenizer
from xmae_jax.rundir import TOKENIZER
from xmae_jax.tasks import predict
from xmae_jax.tasks.film import view_of
from xmae_jax.tasks.model import load_run, placed
from xmae_jax.tasks.outputs import NoFilm
from xmae_jax.tasks.predict_reports import find, grouped
from xmae_jax.tasks.train import mesh_of


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Draw 24 phantoms as DICOM, and put them into shards."""
    folder = tmp_path_factory.mktemp("reports")
    sizes = ["--size", "96", "--workers", "1"]
    drawn = ["--output", str(folder / "films"), "--count", "24", "--seed", "1", "--dicom"]
    assert phantoms.main([*drawn, *sizes]) == 0
    made = ["--input", str(folder / "films"), "--output", str(folder / "shards"), *sizes]
    more = ["--key", str(folder / "key"), "--id-map", str(folder / "ids.csv"), "--lungs", "given"]
    assert build.main([*made, *more]) == 0
    return folder


@pytest.fixture(scope="module")
def reporter(films):
    """Make the run directory of a tiny model."""
    small = dict(vocab=400, width=24, depth=1, heads=2, head_width=8, hidden=24)
    workdir = films / "run"
    make_run(
        workdir, "finetune_report", data=films / "shards", 
        objective__generate__max_new=24, objective__encoder__depth=1,
        **{f"objective__head__decoder__{name}": value for name, value in small.items()},
    )  # fmt: skip
    return workdir


def written(workdir, files, **changes):
    """Predict; return (lines of the studies, lines of the files, the folder)."""
    config = load_run(workdir).config
    config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, **changes))
    predict.run(config, workdir, [str(path) for path in files])
    output = max((workdir / "predict").iterdir(), key=lambda p: int(p.name))
    with (output / "predictions.csv").open(encoding="utf-8") as studies:
        with (output / "files.csv").open(encoding="utf-8") as table:
            return list(csv.DictReader(studies)), list(csv.DictReader(table)), output


def test_a_study_gets_the_report_that_its_record_gets(films, reporter, capsys):
    """Also: what is written of it, and that nothing says who it is of."""
    paths = {row["id"]: row["path"] for row in csv.DictReader((films / "ids.csv").open())}
    splits = [open_studies(films / "shards", name, views=2) for name in ("train", "val", "test")]
    studies = [study for split in splits for study in split]
    wanted = [next(s for s in studies if len(s["films"]) == n) for n in (2, 1)]
    files = [paths[film["id"]] for study in wanted for film in study["films"][::-1]]
    lines, table, output = written(reporter, files)
    assert [line["films"] for line in lines] == ["2", "1"]
    assert [row["study"] for row in table] == ["1", "1", "2"]
    assert lines[0]["views"].split()[1] == "LL" and lines[0]["flags"] == ""
    loaded = load_run(reporter)
    view = view_of(
        loaded.config, loaded.objective, train=False, tokenizer=reporter / TOKENIZER
    )  # fmt: skip
    rows = [view({**study, "report": NO_REPORT}, np.random.default_rng(0)) for study in wanted]
    mesh = mesh_of(loaded.config)
    batch = {n: np.stack([rows[i % 2][n] for i in range(8)]) for n in rows[0]}
    explain = infer.compile_predict(loaded.objective.explain, mesh, rng.key(0, "eval"))
    told = explain(placed(loaded, loaded.config, mesh), sharding.to_global(batch, mesh, 8))
    tokenizer = Tokenizer.load(reporter / TOKENIZER)
    for i, line in enumerate(lines):
        ids, log_prob = (np.asarray(told[name][i]) for name in ("written", "log_prob"))
        assert line["report"] == tokenizer.decode(ids) != ""
        assert (output / f"reports/000{i + 1}.txt").read_text() == line["report"] + "\n"
        assert line["complete"] == ("yes" if 1 in ids else "no")
        tokens = int(line["tokens"])
        mean = log_prob[:tokens].mean()
        assert float(line["mean_log_probability"]) == pytest.approx(mean, rel=1e-4)
        assert Image.open(output / f"pictures/000{i + 1}.png").width > 512
    for path in ("predictions.csv", "files.csv"):
        assert (output / path).stat().st_mode & 0o777 == 0o600
    assert output.stat().st_mode & 0o777 == 0o700
    left = capsys.readouterr().out + "".join(
        path.read_text() for path in output.rglob("*.*") if path.suffix != ".png"
    )
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        for one in (header.StudyInstanceUID, header.PatientID, header.SOPInstanceUID):
            assert str(one) and str(one) not in left


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(films, reporter, tmp_path, capsys):
    two = [films / f"films/images/ph_00000{i}.dcm" for i in (0, 1)]  # of one study
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(two[1].read_bytes()[:-900])
    (tmp_path / "no.png").write_bytes(b"no picture")
    wide = tmp_path / "wide.png"
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (64, 30))).save(wide)
    folder = tmp_path / "pair"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(phantoms.draw(5, 0, size=96).image).save(folder / f"{name}.png")
    files = [tmp_path / "no.png", two[0], broken, wide, folder]
    lines, table, output = written(reporter, files)
    assert [line["status"] for line in lines] == ["rejected", "ok", "rejected", "ok"]
    assert [line["films"] for line in lines] == ["", "1", "", "2"]
    assert lines[1]["reason"] == "1 of its 2 files cannot be used"
    assert "not a DICOM" in lines[0]["reason"] and "too narrow" in lines[2]["reason"]
    assert [row["status"] for row in table] == [
        "rejected",
        "ok",
        "rejected",
        "rejected",
        "ok",
        "ok",
    ]
    assert "cut short" in table[2]["reason"]
    names = ["0002", "0004"]
    assert sorted(path.stem for path in (output / "pictures").iterdir()) == names
    assert sorted(path.stem for path in (output / "reports").iterdir()) == names
    out = capsys.readouterr().out
    assert f"study 1 ({files[0]}): rejected: not a DICOM" in out
    assert f"file 3 ({broken}): rejected: " in out and "2 of 4 studies have a report" in out
    about = json.loads((output / "about.json").read_text())
    assert about["studies"] == {"files": 6, "studies": 4, "reports": 2}
    assert "no proof" in about["pictures"]
    assert out.count("files of no study number") == 1
    assert "note: study 4 is 2 files of no study number that lie in one folder" in out


def test_of_many_films_a_frontal_and_a_lateral_one_are_read(films, reporter, tmp_path):
    (tmp_path / "copies").mkdir()
    frontal, lateral = (films / f"films/images/ph_00000{i}.dcm" for i in (0, 1))
    for i, path in enumerate((frontal, frontal, lateral)):
        (tmp_path / f"copies/{i}.dcm").write_bytes(path.read_bytes())
    (line,), table, _ = written(reporter, [tmp_path / "copies"])
    assert line["views"].split() == ["PA", "LL"] and line["films"] == "2"
    assert [row["status"] for row in table] == ["ok", "left out", "ok"]
    for name in "abc":  # no number says that these are of one study
        Image.fromarray(phantoms.draw(5, 0, size=96).image).save(tmp_path / f"copies/{name}.png")
    lines, table, _ = written(reporter, [tmp_path / "copies"])
    assert [line["status"] for line in lines] == ["ok", "rejected"]
    assert "3 films of no study number" in lines[1]["reason"]
    assert [row["status"] for row in table[3:]] == ["left out"] * 3


def test_files_are_put_together_by_patient_and_study(tmp_path):
    for name in ("y/2", "x/b", "x/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = [("q", None), *find([str(tmp_path), "z", "z2"])]
    assert [Path(name).name for name, _ in named] == ["q", "a", "b", "2", "z", "z2"]
    ids = [("p", "1"), ("", ""), FilmError("broken"), ("other", "1"), ("p", "1"), ("p", "")]
    studies = grouped(named, ids)
    assert [[file.number for file in study.files] for study in studies] == [
        [1, 5],
        [2, 3],
        [4],
        [6],
    ]
    assert [study.number for study in studies] == [1, 2, 3, 4]
    assert [study.said for study in studies] == [True, False, True, False]
    # Without a study number, a folder may hold films of two patients.
    ids = [("", ""), ("p", ""), ("q", ""), ("p", ""), ("", ""), ("", "")]
    studies = grouped([(f"f{i}", str(tmp_path)) for i in range(6)], ids)
    assert [[f.number for f in study.files] for study in studies] == [[1, 5, 6], [2, 4], [3]]


def test_a_file_that_is_named_twice_is_read_once(tmp_path, capsys):
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    twice = [str(tmp_path / "a"), str(tmp_path)]
    assert list(find(twice)) == [(twice[0], None)]
    told = capsys.readouterr().out
    assert told.count("is named twice, and read once") == 2 and str(tmp_path / "b") in told


def test_what_cannot_be_done_is_told(films, reporter, tmp_path):
    film = films / "films/images/ph_000000.dcm"
    for name, value in (("heat", "attention"), ("maps", 1)):
        with pytest.raises(ConfigError, match=f"config.predict.{name} is for runs that predict"):
            written(reporter, [film], **{name: value})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no file in .*empty"):
        written(reporter, [tmp_path / "empty"])
    with pytest.raises(NoFilm, match="none of 1 files can be used: .*files.csv says why"):
        written(reporter, [tmp_path / "gone.png"])
    loaded = load_run(reporter)
    text = dataclasses.replace(loaded.config.data.text, views=0)
    blind = dataclasses.replace(
        loaded.config, data=dataclasses.replace(loaded.config.data, text=text)
    )
    with pytest.raises(ConfigError, match="views is 0"):
        predict.predict_reports.run(blind, loaded, [str(film)])
    make_run(tmp_path / "mae", "quickstart", data=films / "shards")
    with pytest.raises(ConfigError, match="'mae' predicts no findings, and writes no reports"):
        predict.run(load_run(tmp_path / "mae").config, tmp_path / "mae", [str(film)])
