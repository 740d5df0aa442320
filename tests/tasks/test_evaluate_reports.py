"""Reports of a run, scored as users ask for it: files, the same numbers from the file, a page."""

import csv
import dataclasses
import hashlib
import json

import pytest

from tests.made_runs import make_run
from xmae_jax.config import ConfigError
from xmae_jax.scores.reports import from_csv, to_csv
from xmae_jax.tasks import evaluate, evaluate_reports
from xmae_jax.tasks.model import load_run
from xmae_jax.tasks.split import open_split

SMALL = {
    f"objective__head__decoder__{name}": size
    for name, size in dict(width=32, depth=1, heads=2).items()
}


@pytest.fixture(autouse=True, scope="module")
def _no_java():
    """Leave METEOR out, which takes Java seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("summarise", "compare"):
            own = getattr(evaluate_reports, name)
            patch.setattr(evaluate_reports, name, lambda *a, own=own, **more: own(*a, meteor=False))
        reporting = evaluate_reports.Reporting
        patch.setattr(evaluate_reports, "Reporting", lambda *a, **more: reporting(*a, meteor=False))
        yield


@pytest.fixture(scope="module")
def evaluated(shards, tmp_path_factory):
    """Make the run directory of a tiny model, and evaluate it on test studies."""
    workdir = tmp_path_factory.mktemp("reports") / "run"
    make_run(
        workdir, "finetune_report", data=shards, step=2, objective__generate__max_new=8, **SMALL
    )
    evaluate.run(load_run(workdir).config, workdir, split="test", against=None)
    return workdir / "eval" / "report_test" / "step_2"


@pytest.fixture(scope="module")
def texts_alone(shards, tmp_path_factory):
    """Make the run directory of a tiny model that sees no film."""
    workdir = tmp_path_factory.mktemp("texts") / "run"
    make_run(workdir, "finetune_report", data=shards, step=2, data__text__views=0, **SMALL)
    return workdir


def test_a_run_without_films_foretells_and_writes_nothing(texts_alone, shards):
    config = load_run(texts_alone).config
    evaluate.run(config, texts_alone, split=None, against=None)
    for name in ("val", "test"):
        folder = texts_alone / "eval" / f"perplexity_{name}" / "step_2"
        metrics = json.loads((folder / "metrics.json").read_text())
        studies = metrics["splits"][name]["studies"]
        assert metrics["splits"][name]["perplexity"] > 1 and metrics["about"]["leaks"] == {}
        assert len((folder / "predictions.csv").read_text().splitlines()) == studies + 1
    assert not [*texts_alone.glob("eval/report*")]
    with pytest.raises(ConfigError, match="--against=.* is not compared"):
        evaluate.run(config, texts_alone, split="test", against=texts_alone)


def test_reports_are_read_as_in_training(evaluated):
    """Else the scores would be of other references, under the same name."""
    config = load_run(evaluated.parents[2]).config
    for change in ({"marks": "keep"}, {"tokenizer": "other.model"}):
        text = dataclasses.replace(config.data.text, **change)
        other = dataclasses.replace(config, data=dataclasses.replace(config.data, text=text))
        with pytest.raises(ConfigError, match=f"config.data.text.{[*change][0]}: "):
            evaluate.run(other, evaluated.parents[2], split="test", against=None)


def test_copies_are_looked_for_in_what_was_trained_on(texts_alone, tmp_path):
    """In the studies that were used, and in those of the run that the decoder comes from."""
    loaded = load_run(texts_alone)
    half = dataclasses.replace(loaded.config.data, label_fraction=0.5)
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=half))
    used = open_split(loaded.config, "train", findings=())
    count = len(used.films)
    assert count < len(used.records[0])
    assert len(evaluate_reports._training_texts(loaded, loaded.config) or ()) == count
    objective = {**loaded.config.objective, "decoder_from": str(texts_alone)}
    config = dataclasses.replace(loaded.config, objective=objective)
    begun = dataclasses.replace(loaded, config=config, workdir=tmp_path)
    texts = evaluate_reports._training_texts(begun, config) or []
    assert len(texts) == count + len(used.records[0]) and all(texts)


def test_files(evaluated, shards):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    about = metrics["about"]
    assert (about["leaks"], about["unreadable"], about["without_film"]) == ({}, 0, 0)
    lines = list(csv.DictReader((evaluated / "predictions.csv").open(newline="")))
    assert len(lines) == metrics["studies"] > 0
    assert {line["split"] for line in lines} == {"test"}
    assert all(line["reference"] and line["label:Pneumothorax"] in "01" for line in lines)
    assert {line["sections"] for line in lines} == {"findings"}
    assert len({line["study"] for line in lines}) == len(lines)
    # What the rules read in phantoms' reports is what was planted.
    same = metrics["labels"]["uncertain_absent"]["findings"], metrics["findings"]
    for name in ("Pneumothorax", "Atelectasis", "Cardiomegaly"):
        own, told = same[0][name], same[1]["uncertain_absent"]["findings"][name]
        assert own["fn"] + own["tp"] == told["fn"] + told["tp"]


def test_file_alone_gives_the_same_numbers(evaluated, tmp_path, capsys):
    file = evaluated / "predictions.csv"
    evaluate.run_file(file, split=None, against=file, folder=tmp_path)
    again = json.loads((tmp_path / "report_test" / "metrics.json").read_text())
    first = json.loads((evaluated / "metrics.json").read_text())
    difference = again.pop("against")["scores"]["rouge_l"]
    assert difference["difference"] == 0 and difference["interval"] == [0, 0]
    assert {**again, "about": 0} == {**first, "about": 0}
    assert "against" in capsys.readouterr().out
    page = (tmp_path / "report_test" / "report.html").read_text()
    assert "no film" in page and "data:image" not in page


def test_scores_of_another_program_are_shown(evaluated, tmp_path, capsys):
    file = tmp_path / "predictions.csv"
    file.write_bytes((evaluated / "predictions.csv").read_bytes())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    splits = {"test": {"studies": 3, "scores": {"strange_f1": 0.1239}}}
    found = {"tool": "radeval <0>", "predictions_sha256": digest, "splits": splits}
    (tmp_path / "outside_scores.json").write_text(json.dumps(found))
    evaluate.run_file(file, split=None, against=None, folder=tmp_path)
    metrics = json.loads((tmp_path / "report_test" / "metrics.json").read_text())
    assert metrics["outside"] == {"tool": "radeval <0>", **splits["test"]}
    page = (tmp_path / "report_test" / "report.html").read_text()
    assert "<td>strange_f1</td><td>0.124</td>" in page and "radeval &lt;0&gt;" in page
    assert "radeval <0> strange_f1 0.124" in capsys.readouterr().out
    (tmp_path / "outside_scores.json").write_text("{")
    evaluate.run_file(file, split=None, against=None, folder=tmp_path)
    page = (tmp_path / "report_test" / "report.html").read_text()
    assert "outside_scores.json cannot be read" in page


def test_what_shows_patients_is_for_the_owner_alone(evaluated):
    assert evaluated.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in evaluated.iterdir()} == {0o600}


def test_page_has_the_films(evaluated):
    page = (evaluated / "report.html").read_text()
    studies = json.loads((evaluated / "metrics.json").read_text())["studies"]
    assert page.count('<article class="study">') == studies
    assert page.count("data:image/jpeg;base64,") >= studies and "no film" not in page


def test_wrong_files_are_named(evaluated, tmp_path):
    text = (evaluated / "predictions.csv").read_text()
    bad = tmp_path / "bad.csv"
    bad.write_text(text + "x\n")
    with pytest.raises(ValueError, match="bad.csv, line"):
        evaluate.run_file(bad, split=None, against=None, folder=None)
    with pytest.raises(ConfigError, match="--split=dev"):
        evaluate.run_file(evaluated / "predictions.csv", split="dev", against=None, folder=None)
    other = tmp_path / "other.csv"
    studies = from_csv(text, name="").studies
    other.write_text(to_csv(one._replace(reference=f"{one.reference} More.") for one in studies))
    with pytest.raises(ValueError, match="another reference"):
        evaluate.run_file(evaluated / "predictions.csv", split=None, against=other, folder=None)


def test_a_file_may_begin_with_a_mark_of_its_encoding(evaluated, tmp_path, capsys):
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + (evaluated / "predictions.csv").read_bytes())
    evaluate.run_file(marked, split=None, against=None, folder=None)
    assert "reports of" in capsys.readouterr().out


def test_a_run_that_neither_finds_nor_writes(shards, tmp_path):
    config = make_run(tmp_path / "run", "pretrain_224", data=shards)
    with pytest.raises(ConfigError, match="predicts no findings and writes no reports"):
        evaluate.run(config, tmp_path / "run", split=None, against=None)
