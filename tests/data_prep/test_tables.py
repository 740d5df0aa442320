"""Tables as people send them: matched by name, or refused with file, line and column."""

import gzip
import math
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from data_prep.build import main
from data_prep.inputs import scan
from data_prep.tables import Table
from xmae_jax.data.findings import FINDINGS, find
from xmae_jax.data.people import stored_age
from xmae_jax.data.records import DataError

CANARY = "ZZPHI"  # stands in every cell that might say who somebody is


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make two films of one patient."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in "ab":
        film = np.random.default_rng(ord(name)).integers(20, 60, (90, 80), np.uint8)
        (tmp_path / "in/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(film).save(tmp_path / f"in/images/{name}.png")
    return tmp_path / "in"


def read(folder):
    return scan(folder, masks=None, labels=None, reports=None)


HEAD, A, B = "image,patient_id,Mass", "images/a.png,ZZPHI,1", "images/b.png,ZZPHI,0"
TWICE = "image,patient_id,Mass,Mass\nimages/a.png,ZZPHI,1,1"
LONG = "Z" * 1_000_000
MATCHED = {
    "extra and reordered columns": "remark,Mass,image\nZZPHI,1,images/a.png\nx,0,images/b.png\n",
    "CRLF": f"{HEAD}\r\n{A}\r\n{B}\r\n",
    "BOM": f"\ufeff{HEAD}\n{A}\n{B}\n",
    "blanks and quotes": 'image , x, "Mass"\nimages/a.png,ZZPHI, 1 \n"images/b.png",,0.0\n',
    "a key with no image": f"{HEAD}\n{A}\n{B}\nimages/gone.png,ZZPHI,1\n",
    "a key outside": f"{HEAD}\n{A}\n{B}\nimages/../../etc/passwd,ZZPHI,1\n../in/../x,ZZPHI,1\n",
    "the same row twice": f"{HEAD}\n{A}\n{B}\n{A}\n",
    "a long cell that nobody reads": f"{HEAD},remark\n{A},{LONG}\n{B},x\n",
    "a formula that nobody reads": f"{HEAD},remark\n{A},=cmd|' /C calc'!A0\n{B},x\n",
    "empty lines, no last newline": f"{HEAD}\n\n{A}\n\n{B}",
    "another spelling": f"{HEAD},no_finding\n{A},0\n{B},0\n".replace("Mass", "MASS"),
}
BROKEN = {
    "missing column": (
        "file,patient_id,Mass\nimages/a.png,ZZPHI,1\n",
        ", line 1: no column 'image'",
    ),
    "no header": (f"{A}\n{B}\n", ", line 1: no column 'image'"),
    "value 2": (f"{HEAD}\n{A}\nimages/b.png,ZZPHI,2\n", ", line 3, column Mass: neither blank nor"),
    "value yes": (f"{HEAD}\n{A[:-1]}yes\n", ", line 2, column Mass: neither blank nor"),
    "value nan": (f"{HEAD}\n{A[:-1]}nan\n", ", line 2, column Mass: neither blank nor"),
    "conflict": (f"{HEAD}\n{A}\n{A[:-1]}0\n", ", line 3, column Mass: a second row"),
    "conflict with blank": (f"{HEAD}\n{A}\n{A[:-1]}\n", ", line 3, column Mass: a second row"),
    "two patients": (f"{HEAD}\n{A}\nimages/a.png,ZZPHI2,1\n", ", line 3, column patient: a second"),
    "empty file": ("", ": empty: no column 'image'"),
    "header only": (f"{HEAD}\n", ": a header and no row"),
    "long id": (f"{HEAD}\nimages/a.png,{LONG},1\n", ", line 2, column patient_id: more than 4096"),
    "long label": (f"{HEAD}\nimages/a.png,ZZPHI,{LONG}\n", ", line 2, column Mass: neither"),
    "long line": (f"{HEAD}\n{A}{LONG * 5}\n", ", line 2: more than 4000000 bytes"),
    "formula label": (
        f"{HEAD}\nimages/a.png,ZZPHI,=cmd|' /C calc'!A0\n",
        ", line 2, column Mass: nei",
    ),
    "formula text": (f"{HEAD},source\n{A},=cmd|' /C calc'!A0\n", ", line 2, column source: begins"),
    "NUL byte": (f"{HEAD}\n{A}\nimages/b.png,ZZ\0PHI,1\n", ", line 3: a NUL byte"),
    "no key has a film": (f"{HEAD}\nimages/ZZPHI.png,ZZPHI,1\n", ": none of its 1 rows has a film"),
    "UTF-16": (f"{HEAD}\n{A}\n".encode("utf-16"), ", line 1: UTF-16: save it as CSV UTF-8"),
    "UTF-16 without a mark": (f"{HEAD}\n{A}\n".encode("utf-16-le"), ", line 1: a NUL byte"),
    "Latin-1": (f"{HEAD}\n{A}\n{B[:-2]}ä,1\n".encode("latin-1"), ", line 3: not UTF-8"),
    "semicolons": (
        f"{HEAD}\n{A}\n".replace(",", ";"),
        ", line 1: columns are not separated by comm",
    ),
    "tabs": (f"{HEAD}\n{A}\n".replace(",", "\t"), ", line 1: columns are not separated by commas"),
    "too few cells": (f"{HEAD}\n{A}\nimages/b.png\n", ", line 3: 3 columns expected, and not 1"),
    "too many cells": (f"{HEAD}\n{A},ZZPHI\n", ", line 2: 3 columns expected, and not 4"),
    "open quote": (f'{HEAD}\n{A}\n"images/b.png,ZZPHI,1\n', ", line 3: not CSV"),
    "bare CR": (f"{HEAD}\r{A}\r", ", line 1: not CSV"),
    "column twice": (f"{TWICE}\n", ", line 1, column 4: its name stands twice"),
    "one finding twice": (
        "image,Effusion,Pleural Effusion\nimages/a.png,1,1\n",
        ", line 1: columns 'Effusion' and 'Pleural Effusion' are one finding",
    ),
    "sex": (f"{HEAD},sex\n{A},ZZ\n", ", line 2, column sex: no sex, such as"),
    "another age": (f"{HEAD},age\n{A},3\n{A},4\n", ", line 3, column age: a second row"),
    "unknown split": (f"{HEAD},split\n{A},holdout\n", ", line 2, column split: neither train, val"),
    "patient in two splits": (
        f"{HEAD},split\n{A},train\n{B},test\n",
        ", line 3, column split: a patient with films in two splits",
    ),
}


@pytest.mark.parametrize("case", MATCHED)
def test_matched_by_name(folder, case):
    (folder / "labels.csv").write_text(MATCHED[case], newline="")
    inputs = read(folder)
    mass = {film: row.findings[FINDINGS.index("Mass")] for film, row in inputs.rows.items()}
    assert mass == {"a.png": 1.0, "b.png": 0.0}
    assert inputs.orphans == MATCHED[case].count("gone.png") + 2 * MATCHED[case].count("passwd")
    assert not inputs.notes and not inputs.refused


@pytest.mark.parametrize("case", BROKEN)
def test_broken_names_file_line_and_column_and_no_content(folder, tmp_path, capsys, case):
    content, part = BROKEN[case]
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = f"--input {folder} --output {tmp_path / 'out'} --size 96 --workers 1"
    assert main(command.split()) == 65
    error = capsys.readouterr().err
    assert f"{path}{part}" in error, error
    assert CANARY not in error and "ZZ" not in error and "cmd" not in error and len(error) < 500
    assert not (tmp_path / "out").exists()


def test_films_without_a_row_are_kept(folder):
    (folder / "labels.csv").write_text(f"{HEAD}\n{A}\n")
    inputs = read(folder)
    assert inputs.films == ("a.png", "b.png") and set(inputs.rows) == {"a.png"}


def test_masks_join_names_that_are_uids(folder):
    films = ("1.2.3.4", "1.2.3.4.7", "1.2.840.113619.2.7", "1.2.840.9.DCM", "x/c.tiff")
    masks = ("1.2.3.4.png", "1.2.840.113619.2.7.png", "1.2.840.9.png", "c.PNG")
    for path in (*(f"images/{name}" for name in films), *(f"lung_masks/{name}" for name in masks)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    joined = {film: mask.name for film, mask in read(folder).masks.items()}
    assert joined == dict(zip((films[0], *films[2:]), masks, strict=True))


def test_blank_and_minus_one_are_kept_apart(folder):
    (folder / "labels.csv").write_text("image,Mass,Edema,ARDS\nimages/a.png,,-1.0,0\n")
    (row,) = read(folder).rows.values()
    found = {name: row.findings[FINDINGS.index(name)] for name in ("Mass", "Edema", "ARDS")}
    assert math.isnan(found["Mass"]) and found["Edema"] == -1 and found["ARDS"] == 0
    assert np.isnan(row.labels).sum() == len(FINDINGS) - 2


def test_columns_that_look_like_findings_are_told(folder):
    rows = ("image,Pneumatocele,age,flag,empty", "images/a.png,1,1,0,", "images/b.png,,71,-1,")
    (folder / "labels.csv").write_text("\n".join(rows))
    notes = read(folder).notes
    assert len(notes) == 2 and "'Pneumatocele'" in notes[0] and "'flag'" in notes[1]


def test_splits_licences_and_the_films_that_follow_their_patient(folder):
    rows = (f"{HEAD},split,licence,mask_licence", f"{A},validate,CC BY 4.0,x", f"{B},,,")
    (folder / "labels.csv").write_text("\n".join(rows))
    a, b = (read(folder).rows[name] for name in ("a.png", "b.png"))
    assert (a.split, a.licence, a.mask_licence) == ("val", "CC BY 4.0", "x")
    assert b.split == "val" and b.licence == ""


def test_packed_tables_are_read_and_cut_ones_refused(folder):
    path = folder / "other.csv.gz"
    path.write_bytes(gzip.compress(f"{HEAD}\n{A}\n{B}\n".encode()))
    assert len(scan(folder, masks=None, labels=path, reports=None).rows) == 2
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="other.csv.gz: cannot be read"):
        scan(folder, masks=None, labels=path, reports=None)


def test_a_bomb_and_a_pipe_do_not_hold_the_reader(folder):
    bomb = folder / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"image,Mass\n" + b"0" * 200_000_000, compresslevel=1))
    tracemalloc.start()
    with pytest.raises(DataError, match="line 2: more than"):
        list(Table(bomb))
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(DataError, match="pipe.csv: not a file"):
        Table(folder / "pipe.csv")


def test_rows_tell_where_they_stand(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"two\nlines \xc3\xa4"\r\n\r\n3,4')
    data = path.read_bytes()
    lines = list(Table(path))
    assert [(line.number, line.cells["a"]) for line in lines] == [(2, "1"), (5, "3")]
    assert data[lines[0].start : lines[0].end] == b'1,"two\nlines \xc3\xa4"\r\n'
    assert data[lines[1].start : lines[1].end] == b"3,4"


def test_links_that_leave_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes((folder / "images/a.png").read_bytes())
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "secret.png", folder / "images/out.png")
    os.symlink(tmp_path / "elsewhere", folder / "images/there")
    os.symlink("a.png", folder / "images/in.png")
    os.symlink(".", folder / "images/loop")
    os.symlink("nothing", folder / "images/broken.png")
    os.mkfifo(folder / "images/pipe.png")
    inputs = read(folder)
    assert inputs.films == ("a.png", "b.png", "broken.png", "in.png", "pipe.png")
    assert inputs.refused == {
        "out.png": "a link that leaves the folder",
        "there": "a link that leaves the folder",
        "loop": "a link to a folder",
    }


def test_reports_are_checked(folder):
    (folder / "reports.csv").write_text(f"study_id,findings\nZZPHI,{'x' * 100_001}\n")
    with pytest.raises(DataError, match="line 2, column findings: more than 100000"):
        read(folder)
    (folder / "reports.csv").write_text("study_id,findings\nZZPHI,x\nZZPHI,y\n")
    with pytest.raises(DataError, match="line 3, column study_id: a second row"):
        read(folder)


def test_one_list_of_findings():
    assert len(set(FINDINGS)) == len(FINDINGS)
    assert [find(name) for name in FINDINGS] == list(range(len(FINDINGS)))
    for name, other in {
        "Effusion": "Pleural Effusion",
        "Pleural effusion": "Pleural Effusion",
        "Pleural_Thickening": "Pleural Thickening",
        "No_Finding": "No Finding",
        "Normal": "No Finding",
        "covid-19": "COVID-19",
        "Round(ed) Atelectasis": "Rounded Atelectasis",
        "Other diseases": "Other Disease",
    }.items():
        assert find(name) == FINDINGS.index(other), name
    assert find("patient_id") is None and find("") is None


def test_an_age_that_cannot_be_read_is_unknown_and_counted(folder):
    (folder / "labels.csv").write_text(f"{HEAD},age\n{A},paediatric 1-5\n{B},414\n")
    inputs = read(folder)
    assert all(math.isnan(stored_age(row.age)) for row in inputs.rows.values())
    assert inputs.notes == (
        "1 films have an age that cannot be read: taken for unknown",
        "1 films have an age that nobody has: taken for unknown",
    )
