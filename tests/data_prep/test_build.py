"""Folders to shards: joined by name, split by patient, the same bytes every time."""

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import splits
from data_prep.build import main
from tests.data.made import dicom
from xmae_jax.data.index import label_matrix, read_entries
from xmae_jax.data.manifest import load_manifest
from xmae_jax.data.records import FINDINGS, NO_REPORT, Records, decode_image, decode_mask
from xmae_jax.data.studies import open_studies

HEX = set("0123456789abcdef")
EDEMA, MASS = FINDINGS.index("Edema"), FINDINGS.index("Mass")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def draw(path, *, seed=0, shape=(150, 120), box=None):
    """Write a noisy film; a box (y0, x0, y1, x1) in it is white."""
    film = np.random.default_rng(seed).integers(20, 60, shape, np.uint8)
    if box is not None:
        film[box[0] : box[2], box[1] : box[3]] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(film).save(path)


def table(path, header, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def archive(tmp_path):
    """Make 24 films of 12 patients, with labels, two masks, a report and two broken files."""
    folder = tmp_path / "archive"
    rows = []
    for index in range(24):
        name = f"images/site{index % 3}/ZZPHI_{index:02d}.png"
        draw(folder / name, seed=index)
        finding = {0: "1", 1: "0", 2: "-1", 3: ""}[index % 4]
        rows.append((name, f"ZZPHI-{index // 2}", f"study-{index}", "PA", "made", finding, "x"))
    for index in (3, 4):
        mask = np.zeros((150, 120), np.uint8)
        mask[30:110, 20:50] = mask[30:110, 70:100] = 255
        path = folder / f"lung_masks/ZZPHI_{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)
    (folder / "images/broken.png").write_bytes(b"ZZPHI")
    Image.new("L", (99, 99)).save(folder / "images/black.png")
    header = ("image", "patient_id", "study_id", "view", "source", "Effusion", "remark")
    table(folder / "labels.csv", header, *rows, ("images/gone.png", "p", "s", "", "", "", ""))
    table(folder / "reports.csv", ("impression", "study_id", "findings"), ("B", "study-7", "A"))
    return folder


def run(archive, output, *extra):
    standard = [
        "--input",
        archive,
        "--output",
        output,
        "--size",
        96,
        "--workers",
        1,
        "--lungs",
        "given",
    ]
    return main([str(part) for part in [*standard, *extra]])


def everything(output):
    """Return the records of all splits, by split."""
    manifest = json.loads((output / "manifest.json").read_text())
    return {split: list(Records(output, split)) for split in manifest["counts"]["splits"]}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_archive_becomes_records(archive, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(archive, output) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("24 films (train ") and "2 rejected" in line
    assert "1 rows of labels without a film" in line
    assert contents(output)["rejected.csv"].decode().splitlines() == [
        "file,reason",
        "black.png,constant picture",
        'broken.png,"not a DICOM, PNG, JPEG or TIFF file"',
    ]
    by_split = everything(output)
    films = [film for split in by_split.values() for film in split]
    assert len(films) == 24 and all(f["split"] == s for s, of in by_split.items() for f in of)
    for name, count in (("id", 24), ("patient", 12), ("study", 24)):
        values = {film[name] for film in films}
        assert len(values) == count
        assert all(len(value) == 16 and set(value) <= HEX for value in values)
    effusion = [film["labels"][FINDINGS.index("Pleural Effusion")] for film in films]
    values, counts = np.unique(effusion, return_counts=True)
    np.testing.assert_array_equal(values, [-1, 0, 1, np.nan])
    np.testing.assert_array_equal(counts, [6, 6, 6, 6])
    others = np.delete(
        np.array([film["labels"] for film in films]), FINDINGS.index("Pleural Effusion"), 1
    )
    assert np.isnan(others).all()
    assert (
        sum(film["report"] == {**NO_REPORT, "findings": "A", "impression": "B"} for film in films)
        == 1
    )
    assert sorted(film["mask_source"] for film in films)[:2] == ["given:file"] * 2
    assert {film["view"] for film in films} == {"PA"} and {f["source"] for f in films} == {"made"}


def test_nothing_that_names_a_patient_is_stored(archive, tmp_path):
    output = tmp_path / "out"
    assert run(archive, output) == 0
    for name, data in contents(output).items():
        assert b"ZZPHI" not in data and b"study-" not in data, name
        assert str(tmp_path).encode() not in data, name


def test_sex_age_and_labels_of_tables_and_headers_reach_the_index(tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    draw(folder / "images/a.png")
    film = np.random.default_rng(1).integers(0, 4096, (90, 80), np.uint16)
    for name in "bcd":
        dicom(folder / f"images/{name}.dcm", film + ord(name), PatientSex="F", PatientAge="093Y")
    rows = (
        ("images/a.png", "p0", "Male", "018M", "1", ""),
        ("images/b.dcm", "p1", "", "", "0", "-1"),
        ("images/c.dcm", "p2", "M", "7", "", ""),
        ("images/d.dcm", "p3", "", "414", "", ""),
    )
    table(folder / "labels.csv", ("image", "patient_id", "sex", "age", "Edema", "Mass"), *rows)
    assert run(folder, output) == 0
    entries = {entry.id: entry for entry in read_entries(output)}
    films = [film for of_split in everything(output).values() for film in of_split]
    told = sorted((e.sex, str(e.age), e.labels[EDEMA] + e.labels[MASS]) for e in entries.values())
    assert told == [("F", "90.0", "0u"), ("F", "nan", ".."), ("M", "1.5", "1."), ("M", "7.0", "..")]
    for film in films:
        entry = entries[film["id"]]
        assert film["sex"] == entry.sex
        np.testing.assert_equal(film["age"], np.float32(entry.age))
        np.testing.assert_array_equal(film["labels"], label_matrix([entry])[0])
    notes = json.loads((output / "manifest.json").read_text())["notes"]
    assert "1 films have an age that nobody has: taken for unknown" in notes
    report = (output / "report.html").read_text()
    assert "Sex and age" in report and "80+ years" in report


def test_patients_stay_in_one_split_and_where_they_were(archive, tmp_path):
    assert run(archive, tmp_path / "one") == 0
    before = {f["patient"]: s for s, films in everything(tmp_path / "one").items() for f in films}
    draw(archive / "images/late.png", seed=99)
    for index in range(20):
        draw(archive / f"images/aaa/{index}.png", seed=100 + index)
    assert run(archive, tmp_path / "two") == 0
    after = {}
    for split, films in everything(tmp_path / "two").items():
        for film in films:
            assert after.setdefault(film["patient"], split) == split
    assert len(after) == 12 + 21  # a film of no known patient is its own patient
    assert before.items() <= after.items()


def test_splits_are_a_fixed_hash_in_the_shares_80_10_10():
    counts = {name: 0 for name in ("train", "val", "test")}
    for index in range(20_000):
        counts[splits.split_of(f"p{index}")] += 1
    assert counts["train"] == pytest.approx(16_000, abs=200)
    assert counts["val"] == pytest.approx(2_000, abs=150)
    # Golden: a changed hash would move the patients of every data set that was ever built.
    drawn = "".join(splits.split_of(f"p{index}")[1] for index in range(60))  # tRain, vAl, tEst
    assert drawn == "rrrerrrrrrrrrrrrrrrrrrarrrrrraraarrrrarrrrrrrrrrrrrrrarrrrrr"


def test_shards_mix_sources_and_are_of_equal_length():
    films = [f"{source}/{index}" for source in "abc" for index in range(1000)]
    parts = splits.shards(films)
    assert sorted(film for part in parts for film in part) == sorted(films)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(0.2 < sum(film[0] == "a" for film in part) / len(part) < 0.5 for part in parts)
    assert len(splits.shards(films * 20)[0]) <= splits.MAX_RECORDS
    assert splits.shards([]) == []


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("shape", [(150, 120), (97, 203)])
def test_mask_and_box_lie_where_the_film_lies(tmp_path, fit, shape):
    folder, output = tmp_path / "in", tmp_path / "out"
    box = (30, 20, 80, 90)
    draw(folder / "images/a.png", shape=shape, box=box)
    mask = np.zeros(shape, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    (folder / "lung_masks").mkdir()
    Image.fromarray(mask).save(folder / "lung_masks/a.png")
    assert run(folder, output, "--fit", fit, "--size", 640) == 0
    (films,) = everything(output).values()
    (film,) = films
    pixels, stored = decode_image(film["image"]), decode_mask(film["lung_mask"])
    assert pixels.shape == (640, 640) and stored.shape == (320, 320)
    bright = pixels.reshape(320, 2, 320, 2).mean((1, 3)) > 150
    assert 2 * (bright & stored).sum() / (bright.sum() + stored.sum()) > 0.98
    top, left, bottom, right = film["valid_box"]
    if fit == "squash":
        assert (top, left, bottom, right) == (0, 0, 640, 640)
    else:
        assert max(bottom - top, right - left) == 640
        ratio = (bottom - top) / (right - left)
        assert ratio == pytest.approx(shape[0] / shape[1], rel=0.01)
        assert abs(top + bottom - 640) <= 1 and abs(left + right - 640) <= 1  # centred
    outside = pixels.copy()
    outside[top:bottom, left:right] = 0
    assert outside.max(initial=0) <= 16  # black, but for a ripple of JPEG
    inside = pixels[top:bottom, left:right]  # film up to its very edge
    assert min(edge.mean() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])) > 15
    np.testing.assert_array_equal(film["original_size"], shape)


@pytest.mark.parametrize("kind", ["empty", "full", "broken", "other shape"])
def test_a_useless_mask_counts_as_none(tmp_path, kind):
    folder, output = tmp_path / "in", tmp_path / "out"
    draw(folder / "images/a.png")
    path = folder / "lung_masks/a.png"
    path.parent.mkdir()
    if kind == "broken":
        path.write_bytes(b"no")
    else:
        size = (120, 120) if kind == "other shape" else (120, 150)
        mask = Image.new("L", size, 255 if kind == "full" else 0)
        if kind == "other shape":
            mask.paste(255, (30, 30, 60, 60))
        mask.save(path)
    assert run(folder, output, "--lungs", "given") == 0
    (films,) = everything(output).values()
    assert films[0]["lung_mask"] is None and films[0]["lung_hull"] is None
    assert films[0]["mask_source"] == "none" and films[0]["mask_quality"] == 0


@pytest.mark.parametrize("lungs", ["rectangle", "none", "heuristic"])
def test_lungs_without_given_masks(tmp_path, lungs):
    folder, output = tmp_path / "in", tmp_path / "out"
    draw(folder / "a.png")  # noise: the heuristic finds nothing
    assert run(folder, output, "--lungs", lungs) == 0
    (films,) = everything(output).values()
    assert films[0]["mask_source"] == ("rectangle" if lungs == "rectangle" else "none")
    assert (films[0]["lung_mask"] is not None) == (lungs == "rectangle")


def test_equal_stems_do_not_share_a_flat_mask(tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    for name in ("a/1", "b/1", "b/2"):
        draw(folder / f"images/{name}.png")
    mask = Image.new("L", (120, 150))
    mask.paste(255, (30, 30, 60, 60))
    for name in ("1", "2", "a/1"):
        (folder / "lung_masks" / name).parent.mkdir(parents=True, exist_ok=True)
        mask.save(folder / f"lung_masks/{name}.png")
    run(folder, output, "--lungs", "given", "--id-map", tmp_path / "map.csv")
    with (tmp_path / "map.csv").open() as file:
        names = {row["id"]: row["path"] for row in csv.DictReader(file)}
    masked = {
        Path(names[film["id"]]).relative_to(folder / "images").as_posix()
        for films in everything(output).values()
        for film in films
        if film["lung_mask"]
    }
    assert masked == {"a/1.png", "b/2.png"}


def test_identical_files_are_two_films(tmp_path):
    folder = tmp_path / "in"
    draw(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "b.png")
    assert run(folder, tmp_path / "out") == 0
    films = [film for split in everything(tmp_path / "out").values() for film in split]
    assert len({film["id"] for film in films}) == len(films) == 2


def test_any_number_of_workers_and_any_place_give_the_same_bytes(archive, tmp_path):
    assert run(archive, tmp_path / "one") == 0
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(archive, moved)
    assert run(moved, tmp_path / "two", "--workers", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_second_run_changes_nothing(archive, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(archive, output) == 0
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    for path in archive.rglob("*.png"):
        os.utime(path)  # touched, not changed
    assert run(archive, output) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert run(archive, output, "--size", 128) == 64
    assert "size=96, not 128" in capsys.readouterr().err
    key = tmp_path / "another key"
    assert run(archive, output, "--key", key) == 64
    assert "key_fingerprint" in capsys.readouterr().err
    draw(archive / "images/late.png", seed=99)
    assert run(archive, output) == 64
    assert "other inputs" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_leftovers_of_a_killed_run_are_cleared(archive, tmp_path):
    work = tmp_path / "out.incomplete"
    work.mkdir()
    (work / "part-train-00000").write_bytes(b"half")
    assert run(archive, tmp_path / "out") == 0
    assert not work.exists()
    assert not any("part" in path.name for path in (tmp_path / "out").iterdir())


@pytest.mark.drill
@pytest.mark.parametrize("delay", [1.5, 2, 2.5, 3])
def test_killed_run_leaves_no_worker_and_the_next_one_is_whole(archive, tmp_path, delay):
    for index in range(300):
        draw(archive / f"images/many/{index}.png", seed=index, shape=(600, 500))
    output = tmp_path / "out"
    build = [sys.executable, "-m", "data_prep.build", "--size", "256"]
    command = [*build, "--input", archive, "--output", output]
    process = subprocess.Popen([*command, "--workers", "2"], start_new_session=True)
    time.sleep(delay)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(process.pid):
        time.sleep(0.1)
    assert not alive(process.pid) and not output.exists()
    subprocess.run([*command, "--workers", "2"], check=True)
    subprocess.run([*command[:-1], tmp_path / "whole", "--workers", "1"], check=True)
    assert contents(output) == contents(tmp_path / "whole")


def alive(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_runs_do_not_share_an_output(archive, tmp_path, capsys):
    work = tmp_path / "out.incomplete"
    work.mkdir()
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert run(archive, tmp_path / "out") == 73
    finally:
        os.close(handle)
    assert work.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["--fit", "stretch"], "--fit"),
        (["--size", "9"], "--size"),
        (["--workers", "0"], "--workers"),
        (["--name", "../x"], "--name"),
        (["--masks", "gone"], "--masks"),
        (["--labels", "gone"], "--labels"),
        (["--sise", "96"], "--sise"),
        (["--input", "gone"], "--input"),
        (["--output", "{in}/images/out"], "outside the input"),
        (["--key", "{out}/key"], "inside the output"),
        (["--id-map", "{out}/map.csv"], "inside the output"),
        (["--id-map", "{in}/gone/map.csv"], "no such folder"),
    ],
)
def test_usage_errors_exit_64_and_write_nothing(archive, tmp_path, capsys, extra, part):
    output = tmp_path / "out"
    extra = [text.replace("{in}", str(archive)).replace("{out}", str(output)) for text in extra]
    assert run(archive, output, *extra) == 64
    assert part in capsys.readouterr().err
    assert not output.exists() and not (tmp_path / "out.incomplete").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("file,Effusion\nimages/site0/ZZPHI_00.png,1\n", "no column 'image'"),
        ("image,Effusion\nimages/site0/ZZPHI_00.png,yes\n", "line 2, column Effusion"),
        ("image,Effusion\nimages/site0/ZZPHI_00.png,2\n", "line 2, column Effusion"),
        ("image,Effusion\nimages/site0/ZZPHI_00.png,1,7\n", "line 2: 2 columns"),
        ("image,Effusion\n" + "images/site0/ZZPHI_00.png,1\n" * 2, None),
        ("image,Mass\nimages/site0/ZZPHI_00.png,1\nimages/site0/ZZPHI_00.png,0\n", "line 3"),
        ("image,image\na,b\n", "stands twice"),
        ("", "no column 'image'"),
        ("image,Effusion\nnowhere/ZZPHI_00.png,1\n", "none of its 1 rows has a film"),
        ("image,Effusion\nsite0/ZZPHI_00.png,1\n", None),  # relative to the films
        ("\ufeffimage,Effusion\r\nimages/site0/ZZPHI_00.png,1.0\r\n", None),
    ],
)
def test_bad_labels_exit_65_naming_the_line(archive, tmp_path, capsys, text, part):
    (archive / "labels.csv").write_text(text, newline="")
    code = run(archive, tmp_path / "out")
    error = capsys.readouterr().err
    assert code == (0 if part is None else 65), error
    if part is not None:
        assert "labels.csv" in error and part in error
        assert not (tmp_path / "out").exists()


def test_only_bad_files_exit_65(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    assert run(folder, tmp_path / "out") == 65
    (folder / "a.png").write_bytes(b"no")
    assert run(folder, tmp_path / "out") == 65
    assert "all 1 files were rejected: not a DICOM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.incomplete").exists()


def test_key_and_id_map_are_for_the_owner_only(archive, tmp_path):
    key, id_map = tmp_path / "config/xmae_jax/key", tmp_path / "map.csv"
    id_map.touch(0o644)
    assert run(archive, tmp_path / "out", "--id-map", id_map) == 0
    assert key.stat().st_mode & 0o777 == id_map.stat().st_mode & 0o777 == 0o600
    first = key.read_bytes()
    assert run(archive, tmp_path / "two") == 0
    assert key.read_bytes() == first and contents(tmp_path / "out") == contents(tmp_path / "two")
    with id_map.open() as file:
        rows = list(csv.DictReader(file))
    films = [film for split in everything(tmp_path / "out").values() for film in split]
    assert {row["id"] for row in rows} == {film["id"] for film in films}
    assert all(Path(row["path"]).is_file() for row in rows)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["arguments"]["key_fingerprint"] == splits.fingerprint(first.strip())
    assert first.strip() not in (tmp_path / "out/manifest.json").read_bytes()


def test_odd_names_and_pipes_stop_nothing(tmp_path):
    folder = tmp_path / "in"
    for name in ("ünïcode näme.png", 'comma, "quote"\n.png', os.fsdecode(b"\xff.png")):
        draw(folder / name)
    os.mkfifo(folder / "pipe.png")
    os.symlink(folder / "gone", folder / "link.png")
    (folder / ".hidden.png").write_bytes(b"no")
    assert run(folder, tmp_path / "out", "--id-map", tmp_path / "map") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"]["films"] == 3 and manifest["counts"]["rejected"] == 2


def test_phantoms_json_stands_in_the_manifest(archive, tmp_path):
    (archive / "phantoms.json").write_text('{"version": 3, "seed": 7}')
    assert run(archive, tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["generator"]["phantoms"] == {"version": 3, "seed": 7}


def test_real_dicom_films_of_one_patient_stay_together(cxr, tmp_path):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    assert run(cxr / "dicom", tmp_path / "out", "--size", "256") == 0
    by_split = everything(tmp_path / "out")
    films = [film for of in by_split.values() for film in of]
    assert len(films) == 7
    patients = {}
    for film in films:
        patients.setdefault(film["patient"], []).append(film)
    assert sorted(map(len, patients.values())) == [2, 2, 3]
    assert all(len({film["split"] for film in group}) == 1 for group in patients.values())
    rsna = [film for film in films if film["view"] == "PA" and film["spacing"][0] > 0]
    assert len(rsna) == 2
    np.testing.assert_allclose(rsna[0]["spacing"], 0.168 * 4, rtol=1e-5)  # 1024 px became 256


@pytest.mark.slow
def test_all_real_films_become_records(cxr, tmp_path):
    assert run(cxr, tmp_path / "out", "--size", "1280", "--workers", "2") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"]["films"] == 186 and manifest["counts"]["rejected"] == 0
    given = [n for name, n in manifest["counts"]["masks"].items() if name.startswith("given:")]
    assert sum(given) == 164


def test_given_splits_hold_for_all_films_of_a_patient(archive, tmp_path, capsys):
    rows = [("images/site0/ZZPHI_00.png", "p", "test"), ("images/site1/ZZPHI_01.png", "p", "")]
    table(archive / "labels.csv", ("image", "patient_id", "split"), *rows)
    assert run(archive, tmp_path / "out") == 0
    by_split = everything(tmp_path / "out")
    patients = {film["patient"]: split for split, films in by_split.items() for film in films}
    counts = {p: sum(f["patient"] == p for of in by_split.values() for f in of) for p in patients}
    assert {patients[p] for p, count in counts.items() if count == 2} == {"test"}


def test_a_patient_of_a_header_in_two_given_splits_is_bad_data(cxr, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("RG1_J2KR.dcm", "RG1_J2KI.dcm"):
        shutil.copy(cxr / "dicom" / name, folder)
    rows = [("RG1_J2KR.dcm", "train"), ("RG1_J2KI.dcm", "test")]
    table(folder / "labels.csv", ("image", "split"), *rows)
    assert run(folder, tmp_path / "out") == 65
    assert "a patient has films in two of the given splits" in capsys.readouterr().err


def test_films_and_masks_of_other_licences_are_left_out(archive, tmp_path):
    header = ("image", "patient_id", "licence", "mask_licence")
    rows = [
        (f"images/site{i % 3}/ZZPHI_{i:02d}.png", f"p{i}", ["A, all", "B"][i % 4 == 0], "C")
        for i in range(24)
    ]
    table(archive / "labels.csv", header, *rows)
    assert run(archive, tmp_path / "out", "--licences", "A, all") == 0
    films = [film for of in everything(tmp_path / "out").values() for film in of]
    assert len(films) == 18 and all(film["lung_mask"] is None for film in films)
    counts = load_manifest(tmp_path / "out")["counts"]
    assert (counts["licences"], counts["mask_licences"]) == ({"A, all": 18}, {})
    rejected = (tmp_path / "out/rejected.csv").read_text()
    assert rejected.count("licence not among those asked for") == 8  # and two without a row
    assert run(archive, tmp_path / "two", "--licences", "A, all", "C") == 0
    films = [film for of in everything(tmp_path / "two").values() for film in of]
    assert sum(film["lung_mask"] is not None for film in films) == 1
    assert load_manifest(tmp_path / "two")["counts"]["mask_licences"] == {"C": 1}


def test_films_of_unknown_patients_and_reports_are_told(archive, tmp_path, capsys):
    table(archive / "labels.csv", ("image", "PatientID"), ("images/site0/ZZPHI_00.png", "p"))
    assert run(archive, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "of 26 of 26 films no patient is known (a column patient_id" in told
    assert "0 films have one of the 1 reports" in told
    assert "no patient is known" in (tmp_path / "out/report.html").read_text()


def test_films_of_a_study_without_a_patient_are_one_patients(archive, tmp_path, capsys):
    rows = [(f"images/site{i % 3}/ZZPHI_{i:02d}.png", f"study-{i // 2}") for i in range(12)]
    table(archive / "labels.csv", ("image", "study_id"), *rows)
    assert run(archive, tmp_path / "out") == 0
    assert "of 26 of 26 films no patient is known" in capsys.readouterr().out
    studies = [
        study
        for split in ("train", "val", "test")
        for study in open_studies(tmp_path / "out", split, views=2)
    ]
    assert sum(len(study["films"]) == 2 for study in studies) == 6 and len(studies) == 18
