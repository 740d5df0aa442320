"""How the lung model's films are chosen: licences, folds by patient, pictures that are no films."""

import csv

import numpy as np
import pytest

from benchmarks import drawings
from benchmarks.segment_lungs import FOLDS, read_films, training_films

HEAD = ("image", "mask", "patient_id", "view", "mask_source", "licence", "mask_licence")
NLM = "NLM-public-use (cite Jaeger 2014)"


def folder_of(path, rows):
    with (path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([HEAD, *rows])
    return path


def test_only_what_may_be_shipped_is_trained_on(tmp_path):
    terms = [
        (NLM, "NLM-public-use", True),
        ("CC BY 3.0", "CC-BY-4.0", True),
        ("CC BY 4.0", "CC-BY-NC-SA-4.0", False),
        ("CC BY-NC-SA 4.0", "CC-BY-4.0", False),
        ("CC BY-SA", "CC-BY-4.0", False),
        ("CC-BY-NC-ND-4.0", "CC-BY-4.0", False),
        ("", "CC-BY-4.0", False),
    ]
    rows = [
        (f"images/{i}.png", f"lung_masks/{i}.png", f"p{i}", "PA", "v7-darwin-human", film, mask)
        for i, (film, mask, _) in enumerate(terms)
    ]
    films = read_films(folder_of(tmp_path, [*rows, ("images/x.png", "", "x", "PA", "", NLM, "")]))
    assert [film.allowed for film in films] == [allowed for *_, allowed in terms]
    assert [film.patient for film in training_films(films, None)] == ["p0", "p1"]


def test_no_patient_is_on_both_sides(tmp_path):
    # Patients of several films, and of both sources.
    rows = [
        (f"images/{i}.png", f"lung_masks/{i}.png", f"p{i % 7}", "PA", source, NLM, "CC-BY-4.0")
        for i, source in enumerate(["montgomery-manual", "v7-darwin-human"] * 12)
    ]
    check_folds(read_films(folder_of(tmp_path, rows)))


def test_real_folds(cxr):
    films = read_films(cxr)
    check_folds([film for film in films if film.allowed])
    assert len(training_films(films, None)) == 77
    for fold in range(FOLDS):
        seen = {film.patient for film in training_films(films, fold)}
        assert not seen & {film.patient for film in films if film.fold == fold}


def check_folds(films):
    for fold in range(FOLDS):
        held_out = [film for film in films if film.fold == fold]
        trained = training_films(films, fold)
        assert held_out and trained
        assert not {f.patient for f in held_out} & {f.patient for f in trained}


@pytest.mark.parametrize("index", range(6))
def test_drawings(index):
    lungs = np.zeros((64, 64), bool)
    lungs[16:48, 10:28] = lungs[16:48, 36:54] = True
    kind, picture = drawings.draw(index, lungs)
    again = drawings.draw(index, lungs)
    assert kind == again[0] and picture.shape == (64, 64)
    np.testing.assert_array_equal(picture, again[1])
    assert 0 <= picture.min() < picture.max() <= 1
