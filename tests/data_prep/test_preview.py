"""Contact sheets: every film once, the worst first, and nothing that names a patient."""

import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep import preview
from data_prep.pictures import caption
from tests.data_prep import test_report
from tests.data_prep.test_report import films_of
from xmae_jax.data.index import read_entries
from xmae_jax.data.manifest import load_manifest

shards = test_report.shards


@pytest.fixture
def data(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "data")


def run(data, *extra):
    return preview.main(["--data", str(data), *map(str, extra)])


@pytest.fixture
def drawn_pages(monkeypatch):
    """Return the places that each page is to show."""
    pages, draw = [], preview._sheet

    def note(entries, found, places, *, title):
        pages.append(list(places))
        return draw(entries, found, places, title=title)

    monkeypatch.setattr(preview, "_sheet", note)
    return pages


def test_all_films_stand_on_pages_beside_the_data_set(data, drawn_pages, capsys):
    before = {path.name for path in data.iterdir()}
    assert run(data) == 0
    count = load_manifest(data)["counts"]["films"]
    output = data.with_name("data_preview")
    assert f"{output}: {count} films on 1 pages" in capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == ["page-0001.png"]
    assert {path.name for path in data.iterdir()} == before
    (places,) = drawn_pages
    assert sorted(places) == list(range(count))
    entries = [read_entries(data)[place] for place in places]
    masked = [entry.mask_quality for entry in entries if entry.mask_source != "none"]
    assert masked == sorted(masked) and len(set(masked)) > 1
    assert all(entry.mask_source == "none" for entry in entries[len(masked) :])


def test_a_page_has_its_films_and_captions_and_no_more(data, drawn_pages):
    assert run(data, "--output", data.with_name("out"), "--films", 9) == 0
    picture = Image.open(data.with_name("out") / "page-0001.png")
    assert not picture.info and picture.mode == "RGB"
    page = np.asarray(picture)
    side, gap, head, text = preview._SIDE, preview._GAP, preview._HEAD, preview._TEXT
    assert page.shape == (head + 2 * (side + text + gap), gap + 8 * (side + gap), 3)
    for i in range(16):
        y, x = head + i // 8 * (side + text + gap), gap + i % 8 * (side + gap)
        tile, line = (
            page[y : y + side, x : x + side],
            page[y + side : y + side + text, x : x + side],
        )
        assert (tile.std() > 5) == (line.min() < 100) == (i < 9)
        has_contour = (tile == (255, 140, 0)).all(-1).any()
        assert has_contour == (i < 8 and read_entries(data)[drawn_pages[0][i]].mask_quality > 0)


def test_pages_hold_48_and_old_pages_go(data, drawn_pages, monkeypatch):
    monkeypatch.setattr(preview, "_LINES", 1)
    output = data.with_name("out")
    assert run(data, "--output", output) == 0
    first = sorted(path.name for path in output.iterdir())
    films = load_manifest(data)["counts"]["films"]
    assert first == [f"page-{i:04d}.png" for i in range(1, -(-films // 8) + 1)]
    assert sum(map(len, drawn_pages)) == films and max(map(len, drawn_pages)) == 8
    kept = (output / first[0]).read_bytes()
    assert run(data, "--output", output, "--films", 8) == 0
    assert [path.name for path in output.iterdir()] == first[:1]
    assert run(data, "--output", output) == 0
    assert (output / first[0]).read_bytes() == kept or len(first) == 1


def test_a_split_and_a_random_order(data, drawn_pages):
    assert run(data, "--split", "train", "--sort", "random", "--films", 7) == 0
    entries = read_entries(data)
    (places,) = drawn_pages
    assert len(places) == 7 and {entries[place].split for place in places} == {"train"}
    assert places != sorted(places)
    assert run(data, "--split", "train", "--sort", "random", "--films", 7) == 0
    assert drawn_pages[0] == drawn_pages[1]


def test_films_with_text_in_them_are_coarse(shards):
    entries = films_of(shards).entries
    flagged = films_of(shards, flags={entries[1].id: "aspect burnt_in_text"})
    plain = films_of(shards)
    side, x, y = preview._SIDE, preview._GAP, preview._HEAD
    first, second = (
        np.asarray(preview._sheet(films.entries, films.shards, [0, 1], title=""))[y : y + side]
        for films in (plain, flagged)
    )
    edge = x + side
    np.testing.assert_array_equal(first[:, :edge], second[:, :edge])
    assert (first[:, edge:] != second[:, edge:]).any()


def test_nothing_names_a_patient(data):
    assert run(data) == 0
    for path in data.with_name("data_preview").iterdir():
        chunks = path.read_bytes()
        assert b"ZZPHI" not in chunks and b"tEXt" not in chunks and b"eXIf" not in chunks


def test_captions_are_short(data):
    entry = read_entries(data)[0]._replace(view="x" * 99, mask_source="given:" + "y\n" * 99)
    assert all(len(line) < 40 and "\n" not in line for line in caption(entry))


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["--output", "{data}/sheets"], "must not lie in the data set"),
        (["--output", "{data}"], "must not lie in the data set"),
        (["--output", "{data}/manifest.json"], "must not lie in the data set"),
        (["--output", "{mine}"], "holds other files than pages"),
        (["--films", "0"], "--films 0: at least 1"),
        (["--split", "dev"], "--split"),
        (["--sort", "name"], "--sort"),
        (["--data", "gone"], "gone: no such folder"),
        (["--shards", "3"], "--shards"),
    ],
)
def test_usage_errors_exit_64_and_write_nothing(data, tmp_path, capsys, extra, part):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    before = sorted(tmp_path.rglob("*"))
    assert run(data, *(text.format(data=data, mine=mine) for text in extra)) == 64
    assert part in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_split_exits_64(tmp_path, capsys):
    from tests.data_prep.test_leaks import build, film

    (tmp_path / "films").mkdir()
    Image.fromarray(film(0)).save(tmp_path / "films/a.png")
    assert build(tmp_path / "films", tmp_path / "one") == 0
    (there,) = load_manifest(tmp_path / "one")["counts"]["splits"]
    other = "val" if there != "val" else "test"
    assert run(tmp_path / "one", "--split", other) == 64
    assert f"there are: {there}" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["manifest.json", "index.csv", "shard"])
def test_damage_exits_65(data, capsys, file):
    path = next(data.glob("*.array_record*")) if file == "shard" else data / file
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert run(data) == 65
    assert path.name in capsys.readouterr().err
