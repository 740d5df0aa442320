"""Films as they come: a line for each file, the run's own numbers, and nothing that stops the rest.

The model is noise; what it says of a film is compared with what an evaluation says of its record.
"""

import csv
import dataclasses
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from data_prep import build, phantoms
from tests.made_runs import make_run
from tests.runs import finish
from xmae_jax.config import ConfigError, PredictConfig
from xmae_jax.data.film import read_film
from xmae_jax.scores.predictions import from_csv
from xmae_jax.tasks import evaluate, predict
from xmae_jax.tasks.model import load_run
from xmae_jax.tasks.shown import made_as

FINDINGS = ("Nodule", "Pneumothorax", "Pleural Effusion")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Draw 24 phantoms as DICOM, and put them into shards."""
    folder = tmp_path_factory.mktemp("predict")
    sizes = ["--size", "96", "--workers", "1"]
    drawn = ["--output", str(folder / "films"), "--count", "24", "--seed", "1", "--dicom"]
    assert phantoms.main([*drawn, *sizes]) == 0
    made = ["--input", str(folder / "films"), "--output", str(folder / "shards")]
    more = ["--key", str(folder / "key"), "--id-map", str(folder / "ids.csv"), "--size", "96"]
    assert build.main([*made, *more, "--workers", "1", "--lungs", "given"]) == 0
    return folder


@pytest.fixture(scope="module")
def finetuned(films):
    """Make the run directory of a tiny model."""
    workdir = films / "run"
    make_run(
        workdir,
        "finetune_full",
        data=films / "shards",
        objective__findings=FINDINGS,
        objective__encoder__width=24,
        objective__encoder__depth=1,
        objective__encoder__patch_size=8,
    )
    return workdir


def predicted(workdir, files, **changes):
    """Predict; return (lines of the table by file name, the folder)."""
    config = load_run(workdir).config
    settings = {"output": None, "heat": None, "maps": 1} | changes
    config = dataclasses.replace(config, predict=PredictConfig(**settings))
    predict.run(config, workdir, [str(path) for path in files])
    output = max((workdir / "predict").iterdir(), key=lambda p: int(p.name))
    with (output / "predictions.csv").open(errors="surrogateescape") as table:
        return {row["file"]: row for row in csv.DictReader(table)}, output


def test_a_film_gets_what_its_record_gets_in_an_evaluation(films, finetuned, capsys):
    before, _ = predicted(finetuned, [films / "films/images/ph_000000.dcm"], maps=0)
    (line,) = before.values()
    assert line["threshold:Nodule"] == line["positive:Nodule"] == line["calibrated:Nodule"] == ""
    assert "step 7 has no scores" in capsys.readouterr().out
    evaluate.run(load_run(finetuned).config, finetuned, split="val", against=None)
    scores = finetuned / "eval/classification_val/step_7"
    metrics = json.loads((scores / "metrics.json").read_text())["findings"]
    scored = from_csv((scores / "predictions.csv").read_text(), name="")
    paths = {row["id"]: row["path"] for row in csv.DictReader((films / "ids.csv").open())}
    wanted = [film.id for film in scored.films]
    lines, output = predicted(finetuned, [paths[name] for name in wanted])
    assert len(lines) == len(wanted) > 0
    assert capsys.readouterr().out.count("* stands behind a probability that reaches") == 1
    for name, logits in zip(wanted, scored.logits, strict=True):
        line = lines[paths[name]]
        for finding, logit in zip(FINDINGS, logits, strict=True):
            entry = metrics[finding]
            assert float(line[f"probability:{finding}"]) == pytest.approx(expit(logit), rel=1e-4)
            limit, warmth = entry["threshold"], entry["calibration"]["temperature"]
            if limit is None:
                assert line[f"positive:{finding}"] == line[f"threshold:{finding}"] == ""
                continue
            if abs(logit - limit["logit"]) > 1e-4:  # else it is the film that gave the threshold
                assert line[f"positive:{finding}"] == ("yes" if logit > limit["logit"] else "no")
            assert float(line[f"calibrated:{finding}"]) == pytest.approx(
                expit(logit / warmth), rel=1e-4
            )
    about = json.loads((output / "about.json").read_text())
    assert about["made_as"] == {"size": 96, "fit": "pad", "codec": "jpeg"}
    assert about["step"] == 7 and about["scores"] == str(scores / "metrics.json")
    assert (output / "predictions.csv").stat().st_mode & 0o777 == 0o600
    assert output.stat().st_mode & 0o777 == 0o700


def test_thresholds_of_a_refitted_head_are_from_before(finetuned, tmp_path):
    """Those of validation itself were chosen on films that it was trained on."""
    loaded = load_run(finetuned)
    for split, logit in (("val", 1.0), ("test", 2.0), ("val_0123abcd", 3.0)):
        folder = tmp_path / f"eval/classification_{split}/step_7"
        folder.mkdir(parents=True)
        entry = {"threshold": {"logit": logit}, "calibration": None}
        told = {"findings": dict.fromkeys(FINDINGS, entry)}
        (folder / "metrics.json").write_text(json.dumps(told))
    assert set(predict.read_decisions(tmp_path, loaded).threshold) == {1.0}
    (tmp_path / "probe.json").write_text('{"refitted": true}')
    assert set(predict.read_decisions(tmp_path, loaded).threshold) == {2.0}
    (tmp_path / "eval/classification_test/step_7/metrics.json").unlink()
    assert np.isnan(predict.read_decisions(tmp_path, loaded).threshold).all()


def turned_jpeg(pixels):
    """Store a film on its side, with the EXIF turn that sets it upright."""
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(data, "JPEG", quality=98, exif=exif)
    return data.getvalue()


def test_a_line_for_each_file_and_maps_upright_at_the_films_own_size(films, finetuned, tmp_path):
    draw = phantoms.draw(5, 0, size=128).image[:, 10:110]
    (tmp_path / "a.jpg").write_bytes(turned_jpeg(draw))
    (tmp_path / "broken.dcm").write_bytes((films / "films/images/ph_000003.dcm").read_bytes()[:900])
    (tmp_path / "ZZ^name.png").write_bytes(b"no picture")
    Image.fromarray(np.tile(draw, (1, 30))[:64]).save(tmp_path / "wide.png")
    drawn = sorted((films / "films/images").iterdir())
    lateral = next(path for path in drawn if read_film(path).view == "LL")
    files = [*sorted(tmp_path.iterdir()), tmp_path / "gone.png", lateral]
    lines, output = predicted(finetuned, files, maps="all", heat="rollout")
    assert [line["number"] for line in lines.values()] == [str(n + 1) for n in range(len(files))]
    reasons = {path.name: lines[str(path)]["reason"] for path in files}
    assert reasons["a.jpg"] == reasons[lateral.name] == ""
    assert "cut short" in reasons["broken.dcm"] and "not a DICOM" in reasons["ZZ^name.png"]
    assert "FileNotFoundError" in reasons["gone.png"] and "too narrow" in reasons["wide.png"]
    assert lines[str(lateral)]["flags"].split() == ["view"] and lines[str(lateral)]["view"] == "LL"
    maps = sorted(path.name for path in (output / "maps").iterdir())
    one, two = (int(lines[str(path)]["number"]) for path in (tmp_path / "a.jpg", lateral))
    assert maps == sorted(
        f"{number:04d}_{name.replace(' ', '_')}.png" for number in (one, two) for name in FINDINGS
    )
    page = np.asarray(Image.open(output / "maps" / f"{one:04d}_Nodule.png").convert("L"))
    height, width = draw.shape
    assert (lines[str(tmp_path / "a.jpg")]["height"], lines[str(tmp_path / "a.jpg")]["width"]) == (
        str(height),
        str(width),
    )
    likeness = [
        np.corrcoef(page[top : top + height, :width].ravel(), draw.ravel())[0, 1]
        for top in range(page.shape[0] - height)
    ]
    assert max(likeness) > 0.7  # through the colours


def test_a_name_that_is_not_utf_8_costs_no_other_file(films, finetuned, tmp_path, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as of a terminal
    film = (films / "films/images/ph_000000.dcm").read_bytes()
    names = [os.fsdecode(bytes(tmp_path) + b"/M\xfcller" + end) for end in (b".dcm", b".png")]
    for name, data in zip(names, (film, b"x"), strict=True):
        with open(name, "wb") as file:
            file.write(data)
    monkeypatch.setattr(sys, "stdout", out)
    _, output = predicted(finetuned, names, maps=0)
    out.flush()
    assert out.buffer.getvalue().count(rb"M\udcfcller") == 2
    table = (output / "predictions.csv").read_bytes()
    assert table.count(b"/M\xfcller.") == 2 and table.count(b",ok,") == 1


def test_films_are_made_as_the_run_s_were_though_its_data_are_gone(finetuned, tmp_path, capsys):
    run = json.loads((finetuned / "run.json").read_text())
    assert run["sources"][0]["film"] == {"size": 96, "fit": "pad", "codec": "jpeg"}
    loaded = load_run(finetuned)
    gone = dataclasses.replace(loaded.config.data, path=str(tmp_path / "gone"))
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=gone))
    assert made_as(loaded) == run["sources"][0]["film"]
    bare = dataclasses.replace(loaded, workdir=tmp_path)  # no run.json, no data
    assert made_as(bare)["fit"] == "pad" and "does not say how" in capsys.readouterr().out


def test_what_cannot_be_done_is_told(films, finetuned, tmp_path):
    film = films / "films/images/ph_000000.dcm"
    with pytest.raises(ConfigError, match="name files"):
        predicted(finetuned, [])
    with pytest.raises(ConfigError, match="config.predict.heat: 'attention': a linear head"):
        predicted(finetuned, [film], heat="attention")
    with pytest.raises(ConfigError, match="is there already"):
        predicted(finetuned, [film], output=str(tmp_path))
    config = dataclasses.replace(load_run(finetuned).config, image_size=32)
    with pytest.raises(ConfigError, match="image_size: 64 in the run directory, 32 now"):
        predict.run(config, finetuned, [str(film)])
    with pytest.raises(predict.NoFilm, match="none of 1 files"):
        predicted(finetuned, [tmp_path / "gone.png"])


def test_the_command_line_takes_files(films, finetuned, tmp_path):
    film = str(films / "films/images/ph_000001.dcm")
    command = [sys.executable, "-m", "xmae_jax.main", "--task=predict", f"--workdir={finetuned}"]
    output = tmp_path / "out"
    code, out = finish([*command, film, f"--config.predict.output={output}", __file__])
    assert code == 0 and "1 of 2 files are films" in out, out
    assert f"2 {__file__}: rejected" in out and len([*(output / "maps").iterdir()]) > 0
    code, out = finish([*command, __file__])
    assert code == 65 and "error: none of 1 files" in out and "Traceback" not in out, out
