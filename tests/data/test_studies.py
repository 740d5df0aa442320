"""Studies as examples, and the view that shows their films and tokenises their report."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from configs.segment_lungs import AUGMENT
from tests.data.test_text import ENGLISH, VOCAB
from xmae_jax.data.augment import Augment
from xmae_jax.data.batch import EveryRow, LoadStep, Source
from xmae_jax.data.index import read_entries
from xmae_jax.data.manifest import DataError
from xmae_jax.data.records import NO_REPORT, Records, encode_image
from xmae_jax.data.report_text import ReportText, tokenizer_of
from xmae_jax.data.studies import Studies, open_studies
from xmae_jax.data.tokenizer_training import train_tokenizer
from xmae_jax.data.views import FRONTAL, LATERAL, OTHER, VIEWS, ReportView, view_id

GRID = (4, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    path.write_bytes(train_tokenizer(ENGLISH, vocab=VOCAB, language="en"))
    return str(path)


@pytest.fixture
def text(model) -> ReportText:
    prefix = ("language", "section", "indication")
    return ReportText(model, ("findings",), prefix, "auto", "keep", length=40, prefix_length=48)


def view_of(text, **changes):
    view = ReportView(32, GRID, crop_scale=None, augment=None, views=2, report=text)
    return dataclasses.replace(view, **changes)


def film(level, view="PA", side=64):
    return {
        "image": encode_image(np.full((side, side), level, np.uint8)),
        "valid_box": np.array([0, 0, side, side // 2]),
        "view": view,
        "labels": np.zeros(0, np.float32),
    }


def study(*films, **report):
    return {"films": list(films), "report": {**NO_REPORT, **report}}


def seen(view, example, seed=0, slots=None):
    return view(example, np.random.default_rng(seed), slots)


def test_each_study_is_one_example_with_frontal_films_first(shards):
    studies = open_studies(shards, "train", views=2)
    assert isinstance(studies, Source)
    films = [*Records(shards, "train")]
    order = [*dict.fromkeys(film["study"] for film in films)]
    assert [example["study"] for example in studies] == order and len(order) < len(films)
    pairs = [example for example in studies if len(example["films"]) == 2]
    assert {tuple(f["view"] for f in one["films"]) for one in pairs} == {("PA", "LATERAL")}
    for entry, example in zip(studies.entries, studies, strict=True):
        first = example["films"][0]
        assert entry.id == first["id"] == example["id"]
        assert (entry.patient, entry.study) == (example["patient"], example["study"])
        assert example["report"] == first["report"] and example["report"]["findings"]
    with pytest.raises(IndexError):
        studies[len(studies)]


class Films(Records):
    """Some records without anything else."""

    def __init__(self, views):
        self.digest, self.directory, self.split, self.size = "0", Path(), "train", 64
        self.views = views

    def __len__(self):
        return len(self.views)

    def __getitem__(self, index):
        names = ("patient", "study", "source", "split", "labels", "report")
        image = b"" if self.views[index] is None else b"film"
        return {"id": str(index), "image": image, **dict.fromkeys(names, "s")}


def chosen(views, number, shards):
    entry = read_entries(shards)[0]
    entries = [entry._replace(id=str(i), view=view or "") for i, view in enumerate(views)]
    example = Studies(Films(views), entries, views=number)[0]
    return [int(film["id"]) for film in example["films"]]


def test_which_films_of_a_study_are_shown(shards):
    assert chosen(["L", "PA", "AP"], 2, shards) == [1, 0]
    assert chosen(["PA", "AP", "L"], 2, shards) == [0, 2]
    assert chosen(["L", "LL"], 2, shards) == [0, 1]
    assert chosen(["PA", "AP", "L"], 3, shards) == [0, 2, 1]
    assert chosen(["L", "PA"], 1, shards) == [1]
    assert chosen([None], 2, shards) == []
    with pytest.raises(ValueError, match="lines of an index"):
        Studies(Films(["PA"]), [], views=1)


def test_a_study_has_one_patient(shards):
    entry = read_entries(shards)[0]  # an archive may count studies anew for each patient
    entries = [entry._replace(id=str(i), patient=p) for i, p in enumerate(("a", "b", "a"))]
    studies = Studies(Films(["PA", "PA", "L"]), entries, views=2)
    assert [[film["id"] for film in one["films"]] for one in studies] == [["0", "2"], ["1"]]
    assert [one.patient for one in studies.entries] == ["a", "b"]


def test_the_digest_names_records_and_views(shards):
    one, again, two = (open_studies(shards, "train", views=n) for n in (1, 1, 2))
    assert one.digest == again.digest != two.digest
    assert one.digest != Records(shards, "train").digest
    # A copy goes by the state that a worker process is sent.
    other = copy.deepcopy(two)
    assert other[3]["id"] == two[3]["id"] and other.digest == two.digest


def test_a_damaged_film_names_its_record(shards, tmp_path):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    studies = open_studies(tmp_path, "val", views=2)
    where = studies.where(0)
    image = studies[0]["films"][0]["image"]
    shard = tmp_path / where.split(",")[0]
    data = bytearray(shard.read_bytes())
    data[data.index(image) + 50] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match=where.replace(",", ": ").replace(":  ", ": ")):
        studies[0]
    assert where.split(",")[0] in str(studies.damage(0, ValueError("x")))


class Junk(Records):
    """Films of which lateral ones are no picture."""

    def __getitem__(self, index):
        film = super().__getitem__(index)
        return {**film, "image": b"no"} if film["view"] == "LATERAL" else film


def test_a_second_film_that_is_no_picture_is_the_one_named(shards, text):
    entries = [entry for entry in read_entries(shards) if entry.split == "train"]
    records = Junk(shards, "train")
    studies = Studies(records, entries, views=2)
    index = next(i for i, study in enumerate(studies) if len(study["films"]) == 2)
    second = [entry.id for entry in entries].index(studies[index]["films"][1]["id"])
    ids = np.array([[0, index]], np.int32)
    with pytest.raises(DataError, match=rf"record {second} is damaged"):
        LoadStep(lambda step: ids, [studies], view_of(text), 0, slice(None), skip=False)(0)
    assert studies.where(index) == records.where(second)


def test_views_have_their_number():
    assert VIEWS["report"] is ReportView
    assert {view_id(v) for v in ("PA", "AP", "AP Supine", "", "Frontal")} == {FRONTAL}
    assert {view_id(v) for v in ("L", "LL", "LATERAL", "LEFT_LATERAL", "lat")} == {LATERAL}
    assert {view_id(v) for v in ("OTHER", "LPO", "OBLIQUE")} == {OTHER}


def test_films_of_a_study_and_empty_places(text):
    row = seen(view_of(text, views=3), study(film(200), film(90, "LATERAL"), findings="Clear."))
    assert row["image"].shape == (3, 32, 32, 1) and row["image"].dtype == np.uint8
    assert [int(one.max()) for one in row["image"]] == [200, 90, 0]
    assert row["has_image"].tolist() == [True, True, False]
    assert row["view_ids"].tolist() == [FRONTAL, LATERAL, OTHER]
    assert row["valid"].shape == (3, 16)
    assert row["valid"][:2].sum() == 16 and not row["valid"][2].any()  # half of each is padding
    more = seen(view_of(text, views=1), study(film(200), film(90, "LATERAL")))
    np.testing.assert_array_equal(more["image"][0], row["image"][0])


def test_a_record_alone_is_a_study(text):
    record = {**film(200), "report": {**NO_REPORT, "findings": "Clear."}}
    one, other = (
        seen(view_of(text), record),
        seen(view_of(text), study(film(200), findings="Clear.")),
    )
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_report_without_films(text):
    for example in (study(findings="Clear."), {"image": b"", "report": study()["report"]}):
        row = seen(view_of(text), example)
        assert not row["has_image"].any() and not row["image"].any() and not row["valid"].any()


def test_text_ends_with_end_and_is_padded(text):
    row = seen(view_of(text), study(findings=" No  pneumothorax ."))
    tokenizer = tokenizer_of(text.tokenizer)
    ids = tokenizer.encode("No pneumothorax.")
    assert row["text"].tolist() == [*ids, 1] + [0] * (39 - len(ids))
    assert row["has_text"] and row["cut"] == 0 and row["text"].dtype == np.int32
    empty = seen(view_of(text), study(impression="Clear."))
    assert not empty["has_text"] and not empty["text"].any()


def test_a_long_report_is_cut_and_has_no_end(text):
    report = " ".join(ENGLISH[:3])
    whole = tokenizer_of(text.tokenizer).encode(report)
    row = seen(view_of(text), study(findings=report))
    assert row["text"].tolist() == whole[:40]
    assert row["cut"] == len(whole) + 1 - 40
    exact = dataclasses.replace(text, length=len(whole))  # the end alone is too much
    assert seen(view_of(exact), study(findings=report))["cut"] == 1
    assert 1 not in seen(view_of(exact), study(findings=report))["text"]


def test_prefixes_are_told_in_order_and_the_free_text_is_cut(text):
    tokenizer = tokenizer_of(text.tokenizer)
    row = seen(view_of(text), study(findings="Clear.", indication="Cough."))
    told = "language: en section: findings indication: Cough."
    assert tokenizer.decode(row["prefix"]).replace(" ", "") == told.replace(" ", "")
    short = seen(view_of(text), study(findings="双肺清晰。"))
    assert "zh" in tokenizer.decode(short["prefix"])
    assert "indication" not in tokenizer.decode(short["prefix"])
    long = seen(view_of(text), study(findings="Clear.", indication="Cough for days. " * 30))
    full = (long["prefix"] != 0).all()
    assert full and tokenizer.decode(long["prefix"]).startswith("language: en")
    fields = tuple(reversed(text.prefix))  # the free text first: the others stay whole
    turned = seen(view_of(dataclasses.replace(text, prefix=fields)),
                  study(findings="Clear.", indication="Cough for days. " * 30))  # fmt: skip
    assert tokenizer.decode(turned["prefix"]).endswith("language: en")


def test_several_sections_have_their_names(text):
    both = dataclasses.replace(text, sections=("findings", "impression"), marks="drop_sentence")
    report = {**NO_REPORT, "findings": "Clear.", "impression": "1. Normal. 2. Seen by ___."}
    assert both.target(report) == "FINDINGS: Clear. IMPRESSION: Normal."
    assert both.target({**report, "findings": "XXXX."}) == "IMPRESSION: Normal."
    assert both.prefixes(report)["section"] == "section: findings, impression"


def test_none_of_it_depends_on_slots_or_batch(text, shards):
    studies = open_studies(shards, "train", views=2)
    view = view_of(text)
    ids = EveryRow((len(studies),), 5, 1_000)
    batch = LoadStep(ids, [studies], view, 0, slice(None), skip=False)(1)
    for place, index in enumerate(batch["id"][:, 1]):
        alone = seen(view, studies[int(index)])
        for name, value in alone.items():
            np.testing.assert_array_equal(batch[name][place], value, err_msg=name)
    assert batch["has_image"].all(axis=0).tolist() == [True, False]


def test_crops_and_changes_are_drawn_from_the_rows_generator(text):
    example = study(film(200), film(90, "L"), findings="Clear.")
    example["films"][0]["image"] = encode_image(np.arange(4096).reshape(64, 64).astype(np.uint8))
    strong = Augment(**{**AUGMENT, "mirror": 0.0})
    for changes in ({"crop_scale": (0.2, 0.5)}, {"augment": strong}):
        view = view_of(text, **changes)
        one, same, other = (seen(view, example, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one["image"], same["image"])
        assert not np.array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["text"], other["text"])


def test_what_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match="mirror: a mirrored film"):
        view_of(text, augment=Augment(**{**AUGMENT, "mirror": 0.5}))
    with pytest.raises(ValueError, match="views must not be negative"):
        view_of(text, views=-1)
    with pytest.raises(DataError, match="none.model"):
        view_of(dataclasses.replace(text, tokenizer="none.model"))
    wrong = (
        {"sections": ()},
        {"prefix": ("section", "section")},
        {"length": 1},
        {"prefix": ()},
    )
    for changes in wrong:
        with pytest.raises(ValueError):
            dataclasses.replace(text, **changes)
