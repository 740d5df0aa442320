"""Whole archives of hostile files and of identifying values, through the command that users run."""

import csv
import os
import subprocess
import sys
import time

import pytest

from benchmarks.data_prep import resident
from data_prep import audit, preview, verify
from tests.conftest import ROOT
from tests.data import hostile
from tests.data.made import RAMP, dicom_bytes
from tests.data.test_film_phi import CANARIES, canaries, pictures
from tests.data_prep.test_build import table
from xmae_jax.data.records import Records, decode_image


def build(folder, output, *extra, timeout=300):
    """Run a build; return its exit code, what it printed and the most memory of one process."""
    key = ["--key", output.parent / "key", "--id-map", output.parent / "map.csv"]
    arguments = ["--input", folder, "--output", output, "--size", "96", *key, *extra]
    where = output.parent / "where"
    where.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.build", *map(str, arguments)],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="surrogateescape",
    )
    peak, end = 0, time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < end:
        peak = max([peak, *resident(process.pid).values()])
        time.sleep(0.02)
    out, _ = process.communicate(timeout=10)
    assert not list(where.iterdir())  # nothing is written where it runs
    return process.returncode, out, peak


def test_hostile_files_are_named_or_used_and_harm_nothing(tmp_path):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    expected = hostile.make(tmp_path / "in")
    secret = tmp_path / "secret.png"
    secret.write_bytes(hostile._saved("PNG"))
    (tmp_path / "in/leaves.png").symlink_to(secret)
    (tmp_path / "in/tree").symlink_to(tmp_path)
    leaves = ("leaves.png", "tree", "device.png")
    expected |= dict.fromkeys(leaves, "a link that leaves the folder")
    before = {path for path in tmp_path.rglob("*") if "in/" not in str(path)}
    rows = [("../secret.png", "p"), ("/etc/passwd", "p"), ("mono2", "p")]
    table(tmp_path / "in/labels.csv", ("image", "patient_id"), *rows)
    code, out, peak = build(tmp_path / "in", tmp_path / "out", "--workers", "2", "--lungs", "none")
    assert code == 0, out
    assert peak < 1_500_000_000
    with (tmp_path / "out/rejected.csv").open(newline="", errors="surrogateescape") as file:
        rejected = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    del expected["folder.png"]  # an empty folder is walked through
    for name, part in expected.items():
        assert (part is None) == (name not in rejected), (name, part, rejected.get(name))
        assert part is None or part in rejected[name], (name, part, rejected[name])
    assert rejected.keys() <= expected.keys()
    written = {path for path in tmp_path.rglob("*") if "in/" not in str(path)} - before
    ours = {tmp_path / name for name in ("out", "key", "map.csv", "where")}
    assert all(path in ours or path.is_relative_to(tmp_path / "out") for path in written)
    assert not list(tmp_path.rglob("PWNED"))


@pytest.fixture(scope="module")
def identifying(tmp_path_factory):
    """Make an archive whose every text is a canary, but for the pixels."""
    folder = tmp_path_factory.mktemp("archive") / "in"
    (folder / "ZZPHI^Jane_19420203").mkdir(parents=True)
    films = folder / "ZZPHI^Jane_19420203"
    tags = [dict(ViewPosition="ZZPHI"), dict(PixelPaddingValue=7), dict(Modality="ZZPHI")]
    for index, tag in enumerate(tags):
        (films / f"ZZPHI_{index}.dcm").write_bytes(canaries(**tag))
    for kind, data in pictures().items():
        (films / f"ZZPHI.{kind}").write_bytes(data)
    (films / "ZZPHI broken.dcm").write_bytes(canaries()[:5000])
    (films / "ZZPHI cut.dcm").write_bytes(canaries()[:-5000])
    (films / "ZZPHI other.dcm").write_bytes(dicom_bytes(RAMP, Modality="CT"))
    names = sorted(path.relative_to(folder).as_posix() for path in films.iterdir())
    rows = [(name, "ZZPHI", "ZZPHI study", "1942-02-03", "ZZPHI", "1") for name in names[:4]]
    header = ("image", "patient_id", "study_id", "birth_date", "name", "Effusion")
    table(folder / "labels.csv", header, *rows)
    return folder


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_canary_leaves_an_archive(identifying, tmp_path, capfd, workers):
    output = tmp_path / "out"
    code, out, _ = build(identifying, output, "--workers", workers, "--lungs", "heuristic")
    assert code == 0, out
    said = [out]
    assert verify.main(["--data", str(output)]) == 0
    assert audit.main(["--data", str(output)]) == 65  # the pictures are copies of one
    assert preview.main(["--data", str(output)]) == 0
    said += [*capfd.readouterr()]
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    # rejected.csv and the map name input files, for the owner alone.
    for path in (output / "rejected.csv", tmp_path / "map.csv"):
        files.discard(path)
        assert path.stat().st_mode & 0o777 == 0o600
    contents = {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}
    for split in ("train", "val", "test"):
        if any(split in name for name in contents):
            for i, record in enumerate(Records(output, split)):
                contents[f"{split} {i}"] = repr(record).encode()
                decode_image(record["image"])
    contents |= {f"said {i}": text.encode() for i, text in enumerate(said)}
    for name, data in contents.items():
        for canary in CANARIES[:2]:
            assert canary.encode() not in data and canary not in name, (name, canary)
    dates = (b"19420203", b"1942-02-03", b"1942:02:03")
    assert not any(date in data for data in contents.values() for date in dates)


def test_errors_of_broken_tables_name_no_patient(identifying, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    os.symlink(identifying / "ZZPHI^Jane_19420203", folder / "images")
    for text in ("image,Effusion\nZZPHI_0.dcm,ZZPHI\n", "image,patient_id\nZZPHI_0.dcm,ZZPHI,3\n"):
        (folder / "labels.csv").write_text(text)
        code, out, _ = build(folder, tmp_path / "out")
        told = out.replace(str(folder), "")
        assert code == 65 and "labels.csv, line 2" in told and "ZZPHI" not in told
