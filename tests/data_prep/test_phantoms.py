"""The phantoms: frozen bytes, exact truth, findings that are there, no shortcut around them."""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from data_prep import phantom_anatomy, phantom_frontal, phantoms
from data_prep.phantom_anatomy import FINDINGS, draw_film, draw_patient, draw_study, locate
from data_prep.phantom_findings import FOCAL, plant
from data_prep.phantom_frontal import LUNG_STEP
from data_prep.phantom_raster import Draws, Frame
from xmae_jax.data.lungs import CONVENTIONS

GOLDEN = Path(__file__).parents[1] / "golden" / "phantoms_v2.json"
FILMS_OF_VERSION_1 = "730d0756007fa4b2010dc7253f2ff212a9dcd5ef3381b4cb087f4562c269458b"
LABELS_OF_VERSION_1 = "bd8ecbac9c9277fd0577d4604eb880a57a817b10763231524ce6c7c8960f49bf"
GOLDEN_FILMS = (0, 1, 2, 3, 4, 5, 6, 7)


def golden(index: int) -> dict:
    phantom = phantoms.draw(0, index, size=128)
    return {
        "labels": phantom.labels,
        "patient": phantom.patient,
        "study": phantom.study,
        "view": phantom.view,
        "sex": phantom.sex,
        "age": phantom.age,
        "findings": phantom.findings,
        "impression": phantom.impression,
        "lung_share": round(float(phantom.lung_mask.mean()), 3),
        "blocks": np.round(phantoms.block_means(phantom.image, 8), 2).tolist(),
    }


def films(condition, count: int, *, seed: int = 0) -> list[int]:
    """Return the first films whose (study, view) satisfies a condition."""
    found, index = [], 0
    while len(found) < count:
        study, view = study_of(seed, index)
        if condition(study, view):
            found.append(index)
        index += 1
    return found


def study_of(seed: int, index: int):
    return draw_study(seed, *locate(seed, index))


def layers_of(index: int, *, size: int = 256, without: str | None = None):
    """Draw a frontal film's layers, with or without one of its findings."""
    patient, place = locate(0, index)
    study, view = study_of(0, index)
    film = draw_film(0, patient, place, view)
    frame = Frame(size, film.angle, film.scale, film.shift)
    chest, layers = phantom_frontal.draw(draw_patient(0, patient), study, film, frame)
    kept = {name: f for name, f in study.planted.items() if name != without}
    boxes = plant(replace(study, planted=kept), chest, layers, frame)
    return chest, layers, boxes, frame


@pytest.mark.parametrize("index", GOLDEN_FILMS)
def test_the_generator_is_frozen(index):
    kept, now = json.loads(GOLDEN.read_text())[str(index)], golden(index)
    difference = np.abs(np.subtract(kept.pop("blocks"), now.pop("blocks")))
    assert kept.pop("lung_share") == pytest.approx(now.pop("lung_share"), abs=0.002)
    assert kept == now
    assert difference.max() <= 1.0


def test_films_and_labels_are_those_of_version_1():
    whole = hashlib.sha256()
    for index in range(24):
        film = phantoms.draw(0, index, size=64)
        whole.update(film.image.tobytes())
        whole.update(np.packbits(film.lung_mask).tobytes())
        about = [film.labels, film.patient, film.study, film.view, film.sex, film.age]
        whole.update(json.dumps(about).encode())
    assert whole.hexdigest() == FILMS_OF_VERSION_1
    whole = hashlib.sha256()
    for index in range(1_500):
        study, view = study_of(0, index)
        whole.update(json.dumps([study.labels, view]).encode())
    assert whole.hexdigest() == LABELS_OF_VERSION_1


def test_the_random_stream_is_philox_raw_bits():
    assert Draws(0, 1, 2).uniform() == 0.790174605053907
    assert Draws(7).uniforms(2).tolist() == [0.46881748695593284, 0.42614583623918467]


def test_a_film_depends_on_seed_and_index_only():
    first, again = phantoms.draw(3, 17, size=64), phantoms.draw(3, 17, size=64)
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, phantoms.draw(4, 17, size=64).image)
    assert not np.array_equal(first.image, phantoms.draw(3, 18, size=64).image)


def test_size_changes_the_raster_only():
    for index in (0, 1, 4):
        small, large = (phantoms.draw(0, index, size=size) for size in (128, 256))
        assert (small.labels, small.findings) == (large.labels, large.findings)
        gap = phantoms.block_means(small.image) - phantoms.block_means(large.image)
        assert np.abs(gap).max() < 6 and np.abs(gap).mean() < 0.6
        share = small.lung_mask.mean() / large.lung_mask.mean()
        assert share == pytest.approx(1, abs=0.02)


def test_patients_have_one_to_three_films_and_share_their_anatomy():
    places = [locate(0, index) for index in range(600)]
    counts = np.unique([patient for patient, _ in places], return_counts=True)[1]
    assert set(counts) == {1, 2, 3}
    a, b = films(lambda s, v: len(s.views) == 2, 2)
    first, second = phantoms.draw(0, a, size=64), phantoms.draw(0, b, size=64)
    assert (first.view, second.view) == ("PA", "LATERAL")
    same = ("patient", "study", "labels", "findings", "sex", "age")
    assert all(getattr(first, name) == getattr(second, name) for name in same)


def test_prevalences_and_views():
    rows = [study_of(5, index) for index in range(1000)]
    for name in FINDINGS:
        assert 0.08 <= np.mean([s.labels[name] for s, _ in rows]) <= 0.20, name
    assert 0.35 <= np.mean([s.labels["No_Finding"] for s, _ in rows]) <= 0.45
    assert 0.09 <= np.mean([view == "LATERAL" for _, view in rows]) <= 0.15
    for study, _ in rows:
        assert study.labels["No_Finding"] == int(not any(study.labels[n] for n in FINDINGS))


def test_nothing_but_the_film_tells_a_finding():
    # one row a patient: sex, view, marker and exposure must not go with findings
    table = []
    for index in range(1000):
        patient, place = locate(9, index)
        if place:
            continue
        study, view = study_of(9, index)
        who, film = draw_patient(9, patient), draw_film(9, patient, place, view)
        shortcuts = (who.sex == "F", view == "AP", film.marker == "R", film.gamma, film.noise)
        table.append([*study.labels.values(), *shortcuts, film.scale, sum(film.collimation)])
    together = np.corrcoef(np.array(table, float), rowvar=False)
    n = 1 + len(FINDINGS)
    assert np.abs(together[:n, n:]).max() < 4 / np.sqrt(len(table))


def test_the_heart_is_labelled_by_its_drawn_ratio():
    seen = set()
    for index in films(lambda s, v: v != "LATERAL", 60):
        patient, place = locate(0, index)
        study, view = study_of(0, index)
        film = draw_film(0, patient, place, view)
        chest = phantom_frontal.build(draw_patient(0, patient), study, film)
        ys = np.linspace(0.3, 0.9, 300)
        heart = sum(max(chest.medial[side].at(y) for y in ys) for side in (-1, 1))
        ratio = heart / (2 * max(chest.wall.at(y) for y in ys))
        assert (ratio > phantom_anatomy.CARDIOMEGALY_RATIO) == bool(study.labels["Cardiomegaly"])
        assert ratio == pytest.approx(study.ctr, abs=0.004)
        seen.add(study.labels["Cardiomegaly"])
    assert seen == {0, 1}


def test_nodules_have_the_size_and_contrast_of_the_specification():
    for index in films(lambda s, v: v != "LATERAL" and "Nodule" in s.planted, 8):
        chest, layers, boxes, frame = layers_of(index)
        _, healthy, _, _ = layers_of(index, without="Nodule")
        extra = layers.attenuation - healthy.attenuation
        nodule = study_of(0, index)[0].planted["Nodule"]
        rows, cols = (np.flatnonzero((extra > 1e-4).any(axis)) for axis in (1, 0))
        for at in (rows, cols):
            assert 0.025 <= np.ptp(at) / frame.size <= 0.085
        x, y = chest.place(nodule.side, nodule.v, nodule.h)
        across, down = frame.to_film(np.array(x), np.array(y))
        y0, x0, y1, x1 = boxes["Nodule"]
        assert y0 < down < y1 and x0 < across < x1
        assert (across < 0.5) == (nodule.side < 0)  # the patient's right is on the left
        middle = np.hypot(frame.x, frame.y - 0.35) < 0.02
        lung = layers.lung > 0.99
        step = healthy.attenuation[middle].mean() - healthy.attenuation[lung].mean()
        assert 0.05 <= extra.max() / step <= 0.25


@pytest.mark.parametrize("name", sorted(FOCAL))
def test_a_focal_finding_fills_its_box_and_stays_in_the_lung(name):
    for index in films(lambda s, v: v != "LATERAL" and name in s.planted, 3):
        _, layers, boxes, frame = layers_of(index)
        _, healthy, _, _ = layers_of(index, without=name)
        change = np.abs(layers.attenuation - healthy.attenuation)
        y0, x0, y1, x1 = (round(edge * frame.size) for edge in boxes[name])
        outside = change.copy()
        outside[y0:y1, x0:x1] = 0
        assert change[y0:y1, x0:x1].max() > 0.03 * LUNG_STEP
        assert outside.max() <= 0.31 * change.max()
        if name != "Nodule":  # a nodule may overlap heart or diaphragm by its rim
            assert change[healthy.lung < 0.01].max() < 0.02 * change.max()
        assert (x0 + x1 < frame.size) == (study_of(0, index)[0].planted[name].side < 0)


def test_pneumothorax_has_no_vessels_outside_the_pleural_line():
    (index,) = films(lambda s, v: v == "PA" and set(s.planted) == {"Pneumothorax"}, 1)
    _, layers, _, _ = layers_of(index)
    _, healthy, _, _ = layers_of(index, without="Pneumothorax")
    change = layers.attenuation - healthy.attenuation
    air = change < 0.98 * change.min()
    assert air.sum() > 300
    assert layers.vessels[air].max() < 0.05 * healthy.vessels[air].max()


def test_the_lung_mask_leaves_out_the_heart_and_keeps_opaque_lung():
    for index in films(lambda s, v: v != "LATERAL" and "Effusion" in s.planted, 3):
        chest, layers, _, frame = layers_of(index)
        mask = phantoms.draw(0, index, size=256).lung_mask
        np.testing.assert_array_equal(mask, layers.lung > 0.5)
        assert 0.15 < mask.mean() < 0.45
        assert not mask[np.abs(frame.x) < 0.02].any()
        medial = chest.medial[1].at(0.62)
        behind = (np.abs(frame.y - 0.62) < 0.01) & (frame.x > 0) & (frame.x < medial - 0.01)
        assert behind.any() and not mask[behind].any()
        _, healthy, _, _ = layers_of(index, without="Effusion")
        np.testing.assert_array_equal(mask, healthy.lung > 0.5)


def test_lungs_are_dark_and_the_middle_is_bright():
    for index in films(lambda s, v: v == "PA", 10):
        phantom = phantoms.draw(0, index, size=128)
        dark, all_ = phantom.image[phantom.lung_mask].mean(), phantom.image[60:100, 58:70].mean()
        assert all_ - dark > 40


def run(tmp_path, *extra: str, name: str = "out") -> Path:
    out = tmp_path / name
    argv = ["--output", str(out), "--count", "14", "--size", "64", "--workers", "1", *extra]
    assert phantoms.main(argv) == 0
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_has_the_layout_that_build_reads(tmp_path, capsys):
    out = run(tmp_path, "--seed", "1")
    assert "not computed" in capsys.readouterr().out
    labels = list(csv.DictReader((out / "labels.csv").open()))
    assert len(labels) == 14
    for index, row in enumerate(labels):
        phantom = phantoms.draw(1, index, size=64)
        np.testing.assert_array_equal(np.array(Image.open(out / row["image"])), phantom.image)
        mask = np.array(Image.open(out / "lung_masks" / Path(row["image"]).name))
        np.testing.assert_array_equal(mask, phantom.lung_mask * np.uint8(255))
        assert {name: int(row[name]) for name in phantom.labels} == phantom.labels
        assert (row["patient_id"], row["view"]) == (phantom.patient, phantom.view)
        assert (row["source"], row["generator_version"]) == ("phantom-v2", "2")
    reports = {row["study_id"]: row for row in csv.DictReader((out / "reports.csv").open())}
    assert set(reports) == {row["study_id"] for row in labels}
    present = [name for row in reports.values() for name in row["images_present"].split(";")]
    assert sorted(present) == [row["image"] for row in labels]
    manifest = json.loads((out / "phantoms.json").read_text())
    assert manifest["generator"] == "xmae_jax phantoms" and manifest["version"] == 2
    assert CONVENTIONS[phantoms.SOURCE] == "lungs"  # of its contours, for the lung model
    assert manifest["pixel_logistic_macro_auroc"] is None


def test_bytes_do_not_depend_on_workers_or_count(tmp_path):
    one, two = run(tmp_path, name="one"), tmp_path / "two"
    argv = ["--output", str(two), "--count", "17", "--size", "64", "--workers", "2"]
    assert phantoms.main(argv) == 0
    first, second = content(one), content(two)
    images = [name for name in first if name.endswith(".png")]
    assert len(images) == 28
    assert all(first[name] == second[name] for name in images)
    assert second["labels.csv"].startswith(first["labels.csv"])


def test_the_same_arguments_again_do_nothing_and_others_are_refused(tmp_path, capsys):
    out = run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    run(tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert "nothing to do" in capsys.readouterr().out
    argv = ["--output", str(out), "--count", "14", "--size", "64", "--seed", "2"]
    assert phantoms.main(argv) == 64
    error = capsys.readouterr().err
    assert "seed 0, asked 2" in error and "count" not in error


def test_other_nodules_change_films_with_nodules_alone():
    # A larger share keeps who has one already, so a study without one looks as it did.
    other = phantoms.Nodules(share=0.3, size=(0.08, 0.12), contrast=(0.4, 1.2))
    pairs = [
        (phantoms.draw(3, i, size=64), phantoms.draw(3, i, size=64, nodules=other))
        for i in range(40)
    ]
    before, after = ([p.labels["Nodule"] for p in side] for side in zip(*pairs, strict=True))
    assert sum(after) > sum(before) > 0
    for one, two in pairs:
        same = np.array_equal(one.image, two.image)
        assert same == (not two.labels["Nodule"])
        assert {**one.labels, "Nodule": 0, "No_Finding": 0} == {
            **two.labels, "Nodule": 0, "No_Finding": 0
        }  # fmt: skip


def test_other_nodules_are_other_phantoms(tmp_path, capsys):
    out = run(tmp_path)
    argv = ["--output", str(out), "--count", "14", "--size", "64"]
    assert phantoms.main([*argv, "--nodule-share", "0.5"]) == 64
    assert "nodules" in capsys.readouterr().err
    # Drawn before there was a choice: the usual ones.
    about = json.loads((out / "phantoms.json").read_text())
    del about["nodules"]
    (out / "phantoms.json").write_text(json.dumps(about))
    assert phantoms.main(argv) == 0


def test_an_interrupted_run_leaves_no_films_behind(tmp_path):
    out = run(tmp_path)
    (out / "phantoms.json").unlink()
    argv = ["--output", str(out), "--count", "5", "--size", "64", "--workers", "1"]
    assert phantoms.main(argv) == 0
    assert sum(name.endswith(".png") for name in content(out)) == 10


def test_a_file_in_the_way_exits_74(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    argv = ["--output", str(tmp_path / "out"), "--count", "1", "--size", "64", "--workers", "1"]
    assert phantoms.main(argv) == 74
    assert str(tmp_path / "out") in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--output", "x", "--size", "100"],
        ["--output", "x", "--count", "0"],
        ["--nope"],
        ["--output", "x", "--nodule-share", "2"],
        ["--output", "x", "--nodule-size", "0.1", "0"],
    ],
)
def test_usage_errors_exit_64(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        phantoms.main(argv)
    assert stop.value.code == 64
    assert not list(tmp_path.iterdir())


def test_dicom_files_say_the_truth_about_their_pixels(tmp_path):
    out = run(tmp_path, "--dicom")
    kinds, uids = set(), set()
    for index, row in enumerate(csv.DictReader((out / "labels.csv").open())):
        data = pydicom.dcmread(out / row["image"])
        phantom = phantoms.draw(0, index, size=64)
        kinds.add(data.PhotometricInterpretation)
        uids.add(data.SOPInstanceUID)
        film = data.pixel_array / 4095
        film = 1 - film if data.PhotometricInterpretation == "MONOCHROME1" else film
        assert np.abs(film * 255 - phantom.image).max() < 0.6
        assert (data.PatientID, data.Modality, data.BitsStored) == (phantom.patient, "DX", 12)
        assert data.ViewPosition == {"LATERAL": "LL"}.get(phantom.view, phantom.view)
        assert float(data.PixelSpacing[0]) * 64 == pytest.approx(350, rel=1e-4)
    assert kinds == {"MONOCHROME1", "MONOCHROME2"} and len(uids) == 14
    first = (out / "images" / "ph_000000.dcm").read_bytes()
    again = run(tmp_path, "--dicom", "--count", "1", name="again")
    assert (again / "images" / "ph_000000.dcm").read_bytes() == first


def test_the_pixel_baseline_finds_what_pixels_show():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    pixels, patients = rng.normal(size=(300, 16, 16)), np.arange(300) // 2
    labels = {"shown": (pixels[:, 3, 4] > 0).astype(int), "chance": rng.integers(0, 2, 300)}
    result = phantoms.pixel_baseline(pixels, labels, patients)
    assert result["auroc"]["shown"] > 0.75
    assert 0.35 < result["auroc"]["chance"] < 0.65
    assert result["macro_auroc"] == pytest.approx(np.mean(list(result["auroc"].values())))


@pytest.mark.slow
def test_pixels_alone_stay_under_the_limit(tmp_path, capsys):
    pytest.importorskip("sklearn")
    out = tmp_path / "phantoms"
    assert phantoms.main(["--output", str(out), "--count", "1000", "--size", "128"]) == 0
    score = json.loads((out / "phantoms.json").read_text())["pixel_logistic_macro_auroc"]
    assert f"macro AUROC {score:.3f}" in capsys.readouterr().out
    assert 0.5 < score < phantoms.MACRO_AUROC_LIMIT


if __name__ == "__main__":  # writes the golden file anew: only with a new VERSION
    GOLDEN.write_text(json.dumps({i: golden(i) for i in GOLDEN_FILMS}, indent=1) + "\n")
