"""report.html: right, safe to open and to mail, the same bytes each time, and never too large."""

import base64
import csv
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_prep.duplicates import find_pairs
from data_prep.pictures import drawn, outlined, read_places, worst
from data_prep.report import REPORT, Films, write_report
from data_prep.report_numbers import percent
from tests.data_prep.test_build import table
from tests.data_prep.test_leaks import again, build, film
from xmae_jax.data.index import read_entries
from xmae_jax.data.manifest import file_digest, load_manifest
from xmae_jax.data.records import Records, decode_mask, encode_image

SOURCE = '<script>alert("x")</script>'
VOID = ("meta", "img", "rect", "path", "input", "br")


class Page(HTMLParser):
    """The elements, attributes, text and pictures of a page; asserts that it is well formed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.said = set(), [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())


def section(text, name):
    """Return the part of a report under one of its headings."""
    return re.search(rf'<h2 id="{name}">.*?(?=<h2|</body>)', text, re.DOTALL).group()


def ids(text):
    return re.findall(r"<code>([0-9a-f]{16})</code>", text)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Build 50 films: of 2 sources, with labels, masks, copies, near copies and broken files."""
    folder = tmp_path_factory.mktemp("report")
    films = folder / "ZZPHI"
    (films / "lung_masks").mkdir(parents=True)
    rows = []
    for i in range(40):
        Image.fromarray(film(i)).save(films / f"ZZPHI{i}.png")
        finding = ("1", "0", "-1", "")[i % 4]
        rows.append((f"ZZPHI{i}.png", f"ZZPHI-{i}", f"s{i}", "PA", SOURCE, finding, "1"))
    for i in range(10):
        name = f"ZZPHI{i} again.{'png' if i < 5 else 'jpg'}"
        if i < 5:
            Image.fromarray(film(i)).save(films / name)
        else:
            (films / name).write_bytes(again(film(i)))
        rows.append((name, f"ZZPHI-again-{i}", f"a{i}", "", "", "", ""))
    for i in range(8):
        mask = Image.new("L", (150, 160))
        mask.paste(255, (20, 20 + i, 60, 120))
        if i:
            mask.paste(255, (90, 20, 130, 120))
        mask.save(films / f"lung_masks/ZZPHI{i}.png")
    for i in range(3):
        (films / f"ZZPHI broken {i}.png").write_bytes(b"ZZPHI")
    header = ("image", "patient_id", "study_id", "view", "source", "Edema", "Mass")
    table(films / "labels.csv", header, *rows)
    table(films / "reports.csv", ("study_id", "findings"), ("s1", "ZZPHI is well"))
    extra = ["--lungs", "given", "--duplicates", "drop", "--exclude", folder / "seen"]
    (folder / "some").mkdir()
    Image.fromarray(film(39)).save(folder / "some/a.png")
    assert build(folder / "some", folder / "seen") == 0
    assert build(films, folder / "shards", *extra) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def text(shards):
    return (shards / REPORT).read_text()


def films_of(directory, *, flags=None, times=1):
    """Describe a data set as a build does; flags: id -> flags, else none; times: as often."""
    flags, entries = flags or {}, read_entries(directory)
    entries = [e._replace(flags=flags.get(e.id, "")) for e in entries] * times
    files = load_manifest(directory)["files"]
    found = [(directory / file["file"], file["records"]) for file in files] * times
    return Films(entries=entries, shards=found, out={}, pairs=[])


def test_it_runs_and_fetches_nothing(text):
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "form", "input", "base"}
    assert not [value for name, value in page.attributes if name.startswith("on")]
    targets = [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert all(target.startswith(("data:image/jpeg;base64,", "#")) for target in targets)
    assert "url(" not in text and "@import" not in text and "http:" not in text
    assert "https:" not in text
    anchors = {target for target in targets if target.startswith("#")}
    assert anchors == {f"#{name}" for name in re.findall(r'<h2 id="(\w+)"', text)}


def test_names_of_a_table_are_text(text):
    assert SOURCE in Page(text).text and SOURCE not in text


def test_it_tells_no_name_path_or_raw_id(text, shards):
    assert "ZZPHI" not in text and str(shards.parent) not in text
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) > 40
    for picture in pictures:
        data = base64.b64decode(picture)
        opened = Image.open(io.BytesIO(data))
        assert opened.size == (192, 192) and b"ZZPHI" not in data
        assert not set(opened.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_it_is_in_the_manifest_and_says_what_is_there(text, shards):
    manifest = load_manifest(shards)
    assert manifest["metadata"][REPORT] == file_digest(shards / REPORT)
    entries, said = read_entries(shards), Page(text).text
    assert f"{len(entries)} chest films" in said
    for split in {entry.split for entry in entries}:
        of_split = [entry for entry in entries if entry.split == split]
        patients = len({entry.patient for entry in of_split})
        row = re.search(rf"{split} (\d+) [\d.]+ % (\d+) (\d+)", Page(section(text, "films")).text)
        assert row and row.groups() == tuple(map(str, (len(of_split), patients, len(of_split))))
    assert manifest["arguments"]["key_fingerprint"] in section(text, "made")
    assert set(ids(section(text, "random"))) == {entry.id for entry in entries}
    labels = Page(section(text, "labels")).text
    train = manifest["counts"]["labels"]["train"]
    row = re.search(r"Edema (\d+) (\d+) (\d+) (\d+) (\d+) %", labels)
    one, none, unsure, unknown, share = map(int, row.groups())
    assert (one, none, unsure) == tuple(train["Edema"][value] for value in ("1", "0", "-1"))
    assert one + none + unsure + unknown == manifest["counts"]["splits"]["train"]
    assert share == round(100 * one / (one + none))
    assert "Mass" in labels and "Hernia" not in labels


def test_films_left_out_are_shown_by_reason(text, shards):
    part = section(text, "rejects")
    reasons = load_manifest(shards)["counts"]["reasons"]
    assert sum(reasons.values()) == 14 and len(reasons) == 4
    for reason, count in reasons.items():
        assert f"{reason} {count}" in Page(part).text
        shown = ids(part.split(f"<h3>{reason}</h3>")[-1].split("<h3>")[0])
        assert len(shown) == (0 if "DICOM" in reason else count)
    assert not set(ids(part)) & {entry.id for entry in read_entries(shards)}


def test_pairs_are_those_of_the_table(text, shards):
    with (shards / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    shown = ids(section(text, "pairs"))
    pairs = {frozenset(pair) for pair in zip(shown[::2], shown[1::2], strict=True)}
    assert pairs == {frozenset((row["id"], row["other_id"])) for row in rows}
    said = Page(section(text, "pairs")).text
    assert all(f"left out: {row['dropped']}" in said for row in rows)


def test_worst_masks_come_first(text, shards):
    entries = {entry.id: entry for entry in read_entries(shards)}
    shown = ids(section(text, "contours").split("<h3>")[0])
    quality = [entries[name].mask_quality for name in shown]
    assert quality == sorted(quality) and quality[0] < quality[-1]
    assert len(shown) == sum(entry.mask_source != "none" for entry in entries.values())


def test_the_same_films_give_the_same_bytes(text, shards, tmp_path):
    films, manifest = films_of(shards), load_manifest(shards)
    first = write_report(tmp_path, manifest, films=films)
    assert write_report(tmp_path, manifest, films=films) == first
    assert ids(section((tmp_path / REPORT).read_text(), "random")) == ids(section(text, "random"))


def test_films_with_text_in_them_are_blurred(text, shards, tmp_path):
    entries = read_entries(shards)
    name, other = entries[0].id, entries[1].id
    flags = {name: "burnt_in_text view", other: "view"}
    manifest = load_manifest(shards)
    manifest["counts"] |= {"flags": {}}
    write_report(tmp_path, manifest, films=films_of(shards))
    assert "No film is flagged." in Page((tmp_path / REPORT).read_text()).text
    manifest["counts"] |= {"flags": {"burnt_in_text": 1, "view": 2}}
    write_report(tmp_path, manifest, films=films_of(shards, flags=flags))
    made = (tmp_path / REPORT).read_text()
    sharp, blurred = (
        set(re.findall(rf'src="([^"]+)" alt="film {name}"', page)) for page in (text, made)
    )
    assert len(sharp) == len(blurred) == 1 and not sharp & blurred
    part = section(made, "flags")
    assert set(ids(part)) == {name, other} and part.count("<img") == 3
    assert "2 · view" in part and "1 · burnt_in_text" in part
    said = Page(made).text
    assert "Films flagged as unusual: 2." in said and "which may name a patient: 1." in said


def test_copies_of_films_with_text_in_them_are_blurred(text, shards, tmp_path):
    entries = read_entries(shards)
    films = films_of(shards, flags={entries[4].id: "burnt_in_text"})
    films = dataclasses.replace(films, pairs=[("near copy", (2, 4, 5))], out={4: "x"})
    write_report(tmp_path, load_manifest(shards), films=films)
    made = (tmp_path / REPORT).read_text()
    for place, blurred in ((2, True), (3, False), (4, True)):
        picture = rf'src="([^"]+)" alt="film {films.entries[place].id}"'
        sharp, now = (set(re.findall(picture, page)) for page in (text, made))
        assert bool(sharp & now) != blurred


def test_pairs_across_splits_come_first_and_are_told(shards, tmp_path):
    films = films_of(shards)
    twins = [entry._replace(id=f"{i:016x}", pixels=films.entries[i].pixels)
             for i, entry in enumerate(films.entries)]  # fmt: skip
    where = {i: "test" if i == 7 else "train" for i in range(len(twins))}
    entries = [e._replace(split="train") for e in films.entries]
    entries += [twin._replace(split=where[i]) for i, twin in enumerate(twins)]
    films = dataclasses.replace(films, entries=entries, shards=[*films.shards] * 2)
    films = dataclasses.replace(films, pairs=find_pairs(entries))
    manifest = load_manifest(shards)
    manifest["counts"] |= {"duplicates_across_splits": {"copy": 1}}
    write_report(tmp_path, manifest, films=films)
    made = (tmp_path / REPORT).read_text()
    part = section(made, "pairs")
    assert len(ids(part)) == 24 and ids(part)[1] == f"{7:016x}"
    assert "the same picture, train and test" in part
    assert "(copy) in two splits: 1. A score on such films says little" in Page(made).text


def test_many_films_of_many_sources_stay_small(shards, tmp_path):
    times = 20_000 // len(read_entries(shards)) + 1
    films = films_of(shards, times=times)
    entries = [e._replace(id=f"{i:016x}", source=f"hospital {i % 1000}", flags=f"f{i % 20}")
               for i, e in enumerate(films.entries)]  # fmt: skip
    manifest = load_manifest(shards)
    manifest["counts"] |= {"films": len(entries)}
    write_report(tmp_path, manifest, films=dataclasses.replace(films, entries=entries))
    made = (tmp_path / REPORT).read_text()
    assert f"{len(entries):,} chest films" in made and len(made) < 4_000_000
    assert "989 others" in made and made.count("hospital ") == 11
    assert "64 films drawn at random" in made


@pytest.mark.parametrize("count", [1, 3])
def test_few_films_and_no_labels(tmp_path, count, capsys):
    folder = tmp_path / "films"
    folder.mkdir()
    for i in range(count):
        Image.fromarray(film(i)).save(folder / f"{i}.png")
    for i in range(30):
        (folder / f"bad{i}.png").write_bytes(b"no" * i)
    assert build(folder, tmp_path / "shards") == 0
    said = Page((tmp_path / "shards" / REPORT).read_text()).text
    assert ("1 chest film," if count == 1 else "3 chest films,") in said
    for line in ("There are no labels.", "No two films show the same.",
                 "No film has a lung contour.", f"Files not used: 30 of {30 + count}",
                 "empty file 1", "No patient fell into the split"):  # fmt: skip
        assert line in said, line


def test_percentages_do_not_round_to_none_or_all():
    told = {0: "0 %", 1e-9: "< 0.1 %", 0.004: "0.4 %", 0.5: "50 %", 0.996: "99.6 %"}
    told |= {0.99999: "> 99.9 %", 1: "100 %"}
    assert {share: percent(float(share)) for share in told} == told


def test_places_are_read_in_order_and_each_once(shards):
    films = films_of(shards)
    expected = [film["id"] for split in ("train", "val", "test") for film in _films(shards, split)]
    last = len(expected) - 1
    found = list(read_places(films.shards, [last, 3, 0, 3]))
    assert [(place, record["id"]) for place, record in found] == [
        (place, expected[place]) for place in (0, 3, last)
    ]
    assert list(read_places(films.shards, [])) == []


def _films(shards, split):
    there = load_manifest(shards)["counts"]["splits"]
    return list(Records(shards, split)) if split in there else []


def test_the_outline_lies_on_the_edge_of_the_mask(shards):
    films = films_of(shards)
    masked = worst(films.entries, range(len(films.entries)), number=1)
    ((_, record),) = read_places(films.shards, masked)
    mask = decode_mask(record["lung_mask"])
    picture = np.asarray(outlined(record, side=len(mask))).astype(int)
    orange = (picture[..., 0] == 255) & (picture[..., 1] == 140) & (picture[..., 2] == 0)
    inner = np.ones_like(mask)
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    np.testing.assert_array_equal(orange, mask & ~inner)


def test_coarse_films_keep_their_outline_and_nothing_below_64_pixels(shards):
    films = films_of(shards)
    masked = worst(films.entries, range(len(films.entries)), number=1)
    ((_, record),) = read_places(films.shards, masked)
    page = Image.new("L", (448, 448))
    ImageDraw.Draw(page).text((40, 40), "NAME", 255, ImageFont.load_default(28))
    blocks = np.asarray(page).reshape(64, 7, 64, 7).swapaxes(1, 2).reshape(64, 64, 49)
    mixed = np.random.default_rng(0).permuted(blocks, axis=2)
    mixed = mixed.reshape(64, 64, 7, 7).swapaxes(1, 2).reshape(448, 448)
    whole, shuffled = ({**record, "image": encode_image(p)} for p in (np.asarray(page), mixed))

    def draw(film, coarse):
        return np.asarray(outlined(film, side=224, coarse=coarse)).astype(int)

    assert np.abs(draw(whole, False) - draw(shuffled, False)).max() > 50
    assert np.abs(draw(whole, True) - draw(shuffled, True)).max() <= 3  # rounded twice
    orange = (draw(whole, False) == (255, 140, 0)).all(-1)
    assert orange.any()
    np.testing.assert_array_equal(orange, (draw(whole, True) == (255, 140, 0)).all(-1))


def test_draws_do_not_depend_on_what_else_is_there(shards):
    entries = read_entries(shards)
    places = list(range(len(entries)))
    first = drawn(entries, places, number=5)
    assert first == drawn(entries, reversed(places), number=5) != places[:5]
    assert set(first) <= set(drawn(entries, places, number=9))
    assert set(drawn(entries, {*first, *places[:3]}, number=5)) == set(first)


def test_the_key_is_nowhere(text, shards):
    key = (shards.parent / "key").read_text().strip()
    assert key not in text
