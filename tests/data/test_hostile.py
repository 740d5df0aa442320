"""Hostile files, each read in one child process: no crash, no hang, no bomb, a reason for each."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data import hostile, made
from xmae_jax.data.film import read_film

LIMIT_S = 20  # for a file
LIMIT_KIB = 1_500_000  # resident, in all


def run(folder, *arguments, timeout, limit_kib=LIMIT_KIB):
    """Run tests.data.fuzz in an empty folder; return its lines by name, and its peak memory."""
    where = folder / "where"
    where.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.fuzz", *arguments],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert not list(where.iterdir())  # nothing is written where it runs
    *lines, peak = map(json.loads, done.stdout.splitlines())
    assert peak["peak_kib"] < limit_kib
    assert max(line["seconds"] for line in lines) < LIMIT_S
    return {line["name"]: line["reason"] for line in lines}


def test_hostile_files_end_as_they_should(tmp_path):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    expected = hostile.make(tmp_path / "expected")
    got = run(tmp_path, "hostile", str(tmp_path / "files"), timeout=300)
    assert len(got) >= 120 and got.keys() == expected.keys()
    wrong = {
        name: (part, got[name])
        for name, part in expected.items()
        if (part is None) != (got[name] is None) or part is not None and part not in got[name]
    }
    assert not wrong
    assert not list(tmp_path.rglob("PWNED"))
    assert all(len(reason) < 130 for reason in got.values() if reason)


def test_controls_are_one_film(tmp_path):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    hostile.make(tmp_path)
    first = read_film(tmp_path / hostile.SAME[0]).pixels
    for name in hostile.SAME[1:]:
        np.testing.assert_array_equal(read_film(tmp_path / name).pixels, first, err_msg=name)
    assert len(np.unique(first)) > 200


def test_a_large_film_takes_little_memory(tmp_path):
    rows, columns = np.arange(4300, dtype=np.uint16), np.arange(3500, dtype=np.uint16)
    made.dicom(tmp_path / "film", np.add.outer(rows, columns) // 2)
    got = run(tmp_path, "read", str(tmp_path / "film"), timeout=60, limit_kib=500_000)
    assert got == {"": None}


def test_mutated_files_raise_nothing_but_film_errors(tmp_path):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    got = run(tmp_path, "mutate", str(tmp_path / "files"), "300", "0", timeout=120)
    refused = sum(reason is not None for reason in got.values())
    assert 60 < refused < 300  # some mutations do no harm


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_mutated_files(tmp_path, seed):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    assert len(run(tmp_path, "mutate", str(tmp_path / "f"), "4000", str(seed), timeout=900)) == 4000
