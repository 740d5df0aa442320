"""The tokenizer that is trained on reports: the training split alone, the same bytes twice."""

import csv
import json

import pytest

from data_prep import reports, tokenizer
from data_prep.splits import split_of
from tests.data.test_text import CHINESE, ENGLISH
from xmae_jax.data.records import Records
from xmae_jax.data.text import Tokenizer


def table(path, texts, secret="Zyxwvut"):
    """Write reports; patients that are not of train say a word that nobody else says."""
    rows = [
        {
            "study_id": f"s{i}",
            "patient_id": f"p{i}",
            "findings": text if split_of(f"p{i}") == "train" else f"{secret} {text}",
            "impression": "",
            "indication": f"Cough for {i % 7} days.",
        }
        for i, text in enumerate(texts)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def made(source, output, *extra):
    argv = ["--input", str(source), "--output", str(output), "--vocab", "352", *extra]
    return tokenizer.main(argv)


@pytest.mark.parametrize(("language", "texts"), [("en", ENGLISH), ("zh", CHINESE)])
def test_the_same_table_gives_the_same_bytes(tmp_path, capsys, language, texts):
    source = table(tmp_path / "reports.csv", texts)
    for name in ("a", "b"):
        assert made(source, tmp_path / f"{name}.model", "--language", language) == 0
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    card = json.loads((tmp_path / "a.json").read_text())
    loaded = Tokenizer.load(tmp_path / "a.model")
    assert (card["digest"], card["vocab"]) == (loaded.digest, loaded.vocab)
    assert (card["language"], card["normalisation"], card["marks"]) == (
        language, "report-1", "keep"
    )  # fmt: skip
    trained = sum(split_of(f"p{i}") == "train" for i in range(len(texts)))
    assert card["fertility"]["train"]["texts"] == 2 * trained
    assert card["fertility"]["val"]["per_word"] > card["fertility"]["train"]["per_word"]
    assert "tokens a word" in capsys.readouterr().out


def test_only_training_patients_are_read(tmp_path):
    source = table(tmp_path / "reports.csv", ENGLISH, secret="Zyxwvut")
    assert made(source, tmp_path / "a.model") == 0
    assert not any("Z" in text for text in tokenizer.texts_of(source, "train", "keep"))
    held = tokenizer.texts_of(source, "val", "keep") + tokenizer.texts_of(source, "test", "keep")
    assert held and sum("Zyxwvut" in text for text in held) == len(held) // 2
    model = Tokenizer.load(tmp_path / "a.model")
    assert not any("Z" in model.model.id_to_piece(i) for i in range(model.vocab))


def test_a_table_is_split_as_its_shards_are(tmp_path, capsys):
    rows = [
        {"study_id": f"s{i}", "patient_id": f"p{i // 2}" if i % 3 else "", "impression": f"No {i}."}
        for i in range(80)
    ]
    for row in rows[::2]:
        row["split"] = "test" if row["patient_id"] in ("p4", "p7", "p8") else ""
    source = tmp_path / "reports.csv"
    with source.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["study_id", "patient_id", "impression", "split"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "key").write_text("17" * 32)
    argv = ["--input", str(source), "--output", str(tmp_path / "out"), "--patient-prefix", "openi:"]
    assert reports.main([*argv, "--key", str(tmp_path / "key")]) == 0
    assert "note: of 27 reports no patient is known" in capsys.readouterr().out
    for split in ("train", "val", "test"):
        of_table = tokenizer.texts_of(source, split, "keep", prefix="openi:")
        assert sorted(of_table) == sorted(tokenizer.texts_of(tmp_path / "out", split, "keep"))
    assert {"No 8.", "No 14.", "No 17."} <= {*of_table}  # 17: another row tells its patient's split
    assert split_of("openi:p14") != split_of("p14")
    assert "No 28." in tokenizer.texts_of(source, split_of("openi:p14"), "keep", prefix="openi:")


def test_shards_give_each_study_once(shards, tmp_path):
    assert made(shards, tmp_path / "a.model", "--marks", "drop_word") == 0
    card = json.loads((tmp_path / "a.json").read_text())
    studies = {record["study"] for record in Records(shards, "train")}
    assert card["fertility"]["train"]["texts"] == 2 * len(studies)  # findings and impression
    assert (card["input"], card["marks"]) == ("films", "drop_word")


def test_what_cannot_be_trained_is_told_without_a_word(tmp_path, capfd):
    source = table(tmp_path / "reports.csv", ENGLISH, secret="Zyxwvut")
    argv = ["--input", str(source), "--output", str(tmp_path / "a.model"), "--vocab", "9000"]
    assert tokenizer.main(argv) == 65
    argv[-1] = "300"
    assert tokenizer.main(argv) == 65
    out, error = capfd.readouterr()
    assert "--vocab 9000: " in error and "at most" in error and "--vocab 300: " in error
    assert "effusion" not in out + error and len(error) < 300
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--input", "no.csv", "--output", "a.model", "--vocab", "500"],
        ["--input", ".", "--output", "a.txt", "--vocab", "500"],
        ["--input", ".", "--output", "a.model", "--vocab", "3"],
        ["--input", ".", "--output", "a.model", "--vocab", "500", "--language", "fr"],
    ],
)
def test_usage_errors_exit_64(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tokenizer.main(argv) == 64
    assert not list(tmp_path.iterdir())


def test_indiana_reports_fit(cxr, tmp_path):
    with (cxr / "reports.csv").open(newline="") as file:
        lines = list(csv.reader(file))[:801]
    with (tmp_path / "some.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    argv = ["--input", str(tmp_path / "some.csv"), "--output", str(tmp_path / "a.model")]
    assert tokenizer.main([*argv, "--vocab", "1000"]) == 0
    fits = json.loads((tmp_path / "a.json").read_text())["fertility"]
    assert fits["val"]["texts"] > 150
    assert fits["val"]["per_word"] < 1.9 and fits["val"]["covered"] > 0.999
    assert fits["val"]["unknown"] == 0
