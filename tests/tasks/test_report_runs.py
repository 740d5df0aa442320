"""Runs that learn to write, as users start them."""

import json
import shutil
import sys

import numpy as np
import pytest

from tests.runs import again, finish, lines, start
from xmae_jax.data.text import NORMALISATION
from xmae_jax.rundir import TOKENIZER

SMALL = (
    "--config.image_size=32",
    "--config.objective.encoder.width=32",
    "--config.objective.encoder.heads=2",
    "--config.objective.head.decoder.width=32",
    "--config.objective.head.decoder.heads=2",
    "--config.objective.head.decoder.dropout=0.1",
    "--config.objective.generate.max_new=8",
    "--config.eval_rows=4",
    "--config.total_steps=4",
)


def command(shards, workdir, *overrides):
    return [
        sys.executable, "-m", "xmae_jax.main", "--config=configs/finetune_report.py:smoke",
        f"--config.data.path={shards}", f"--workdir={workdir}", *SMALL, *overrides,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def written(shards, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("written") / "run"
    code, out = finish(command(shards, workdir))
    assert code == 0, out
    return workdir, out


def test_a_run_leaves_scores_of_what_it_wrote(written):
    workdir, out = written
    train = lines(workdir)
    assert {"nll", "token_accuracy"} <= set(train[0])
    assert train[-1]["training_loss"] < train[0]["training_loss"]
    assert f"{workdir}" in out and "pieces, made of" in out and "perplexity (val): " in out
    told = {name: workdir / "eval" / name / "step_4" for name in ("perplexity", "report")}
    metrics = json.loads((told["perplexity"] / "metrics.json").read_text())
    assert metrics["splits"]["val"]["perplexity"] > 1
    report = json.loads((told["report"] / "metrics.json").read_text())
    assert report["split"] == "val" and report["studies"] == 4
    assert len((told["report"] / "predictions.csv").read_text().splitlines()) == 5
    pictures = workdir / "pictures/step_4"
    assert {p.name for p in pictures.iterdir()} == {"perplexity.png", "report.png"}
    (source,) = json.loads((workdir / "run.json").read_text())["sources"]
    assert len(source["tokenizer"]) == 64
    assert (source["normalisation"], source["marks"]) == (NORMALISATION, "drop_sentence")


def test_a_run_goes_on_by_its_own_copy_of_the_tokenizer(written, shards, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written[0], workdir)
    shutil.rmtree(workdir / "eval")
    code, out = finish(again(workdir))
    assert code == 0, out
    for name in ("eval/report/step_4/predictions.csv", "eval/perplexity/step_4/metrics.json"):
        assert (workdir / name).read_text() == (written[0] / name).read_text()
    (workdir / TOKENIZER).write_bytes(b"another")
    code, out = finish(again(workdir))
    assert code == 74 and TOKENIZER in out, out


@pytest.fixture(scope="module")
def texts(shards, tmp_path_factory):
    """Reports without films, of patients that the films do not have."""
    from data_prep import reports

    folder = tmp_path_factory.mktemp("texts")
    with (folder / "reports.csv").open("w") as file:
        print("study_id,patient_id,findings,indication", file=file)
        for i in range(60):
            side, size = ("left", "right")[i % 2], ("small", "large")[i % 3 == 0]
            print(f"s{i},p{i // 2},A {size} {side} pleural effusion {i}.,Cough {i}.", file=file)
    argv = ["--input", str(folder / "reports.csv"), "--output", str(folder / "shards")]
    assert reports.main([*argv, "--key", str(shards.parent / "key")]) == 0
    return folder / "shards"


@pytest.mark.slow
def test_a_decoder_warms_up_on_text_and_goes_on_with_films(shards, texts, tmp_path):
    warm, run = tmp_path / "warm", tmp_path / "run"
    freeze = ("encoder/.*", "head/(projection|views|norm)(/.*)?", ".*/cross/.*")
    few = "--config.objective.head.decoder.vocab=400"
    code, out = finish(
        command(texts, warm, "--config.data.text.views=0", f"--config.optim.freeze={freeze!r}", few)
    )
    assert code == 0 and "perplexity (val)" in out, out
    assert not (warm / "eval/report").exists()  # nothing is seen, so nothing is written
    both = command((str(shards), str(texts)), run, f"--config.objective.decoder_from={warm}")
    code, out = finish([*both, "--config.data.mixture=(6, 2)", "--config.data.eval_split=None"])
    assert code == 0, out
    assert f"decoder from {warm}: " in out and "vocab 400" in out
    assert (run / TOKENIZER).read_bytes() == (warm / TOKENIZER).read_bytes()
    sources = json.loads((run / "run.json").read_text())["sources"]
    assert len(sources) == 2 and sources[0]["tokenizer"] == sources[1]["tokenizer"]


@pytest.mark.slow
def test_eight_devices_give_the_same_run(written, shards, tmp_path):
    argv = command(shards, tmp_path / "run", "--config.mesh.fsdp=2")
    process = start([*argv, "--config.data.eval_split=None"], devices=8)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    losses = [[line["training_loss"] for line in lines(d)] for d in (tmp_path / "run", written[0])]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_step_that_is_left_out_is_kept_to_look_at(shards, tmp_path):
    poison = ["--config.debug.poison_step=2:nan", "--config.data.eval_split=None"]
    code, out = finish(command(shards, tmp_path / "run", *poison))
    assert code == 0 and "step 2 skipped" in out, out
    assert (tmp_path / "run/debug/step_2/thumbnails.png").stat().st_size > 1000
