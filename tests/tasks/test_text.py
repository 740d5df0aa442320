"""A run's tokenizer: whose it is, and that it stays with the run."""

import dataclasses
import json
import shutil

import pytest

from data_prep import tokenizer as made_by_hand
from tests.test_configs import resolved
from xmae_jax.config import ConfigError
from xmae_jax.data.manifest import DataError
from xmae_jax.data.studies import Studies
from xmae_jax.rundir import TOKENIZER, Run, RunDirectoryError
from xmae_jax.tasks.split import open_split
from xmae_jax.tasks.text import run_tokenizer, tokenizer_of, with_decoder


@pytest.fixture(scope="module")
def config(shards):
    made = resolved("finetune_report", "smoke")
    return dataclasses.replace(made, data=dataclasses.replace(made.data, path=str(shards)))


@pytest.fixture(scope="module")
def training(config):
    return open_split(config, "train", findings=())


def changed(config, *, tokenizer=None, **objective):
    text = dataclasses.replace(config.data.text, tokenizer=tokenizer and str(tokenizer))
    data = dataclasses.replace(config.data, text=text)
    return dataclasses.replace(config, data=data, objective={**config.objective, **objective})


def begun(workdir, found):
    Run(workdir, "0" * 32, [{"records": 1, "digest": "d", "tokenizer": found.digest}]).write()


@pytest.fixture(scope="module")
def files(shards, tmp_path_factory):
    """Two tokenizers of these shards."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, vocab in (("a", "400"), ("b", "420")):
        argv = ["--input", str(shards), "--output", str(folder / f"{name}.model")]
        assert made_by_hand.main([*argv, "--vocab", vocab, "--marks", "drop_sentence"]) == 0
    return folder


def test_without_one_it_is_made_of_the_training_split(config, training, shards, tmp_path, capsys):
    found = tokenizer_of(config, tmp_path / "one", training)
    again = tokenizer_of(config, tmp_path / "two", training)
    assert found == again and found.vocab <= 512
    assert "pieces, made of" in capsys.readouterr().out
    # By hand, the same.
    argv = ["--input", str(shards), "--output", str(tmp_path / "hand.model")]
    argv += ["--marks", config.data.text.marks, "--vocab", str(found.vocab)]
    assert made_by_hand.main(argv) == 0
    assert (tmp_path / "hand.model").read_bytes() == (tmp_path / "one" / TOKENIZER).read_bytes()


def test_damaged_records_are_left_out_if_so_wished(config, training, tmp_path, monkeypatch):
    own = Studies.report

    def report(self, index):
        if index == 0:
            raise DataError("record 0 is damaged")
        return own(self, index)

    monkeypatch.setattr(Studies, "report", report)
    with pytest.raises(DataError, match="record 0"):
        tokenizer_of(config, tmp_path, training)
    data = dataclasses.replace(config.data, bad_records="skip")
    assert tokenizer_of(dataclasses.replace(config, data=data), tmp_path, training) is not None


def test_a_run_keeps_a_copy_and_goes_on_without_the_file(config, training, files, tmp_path):
    run, given = tmp_path / "run", tmp_path / "given.model"
    shutil.copy(files / "a.model", given)
    named = changed(config, tokenizer=given)
    found = tokenizer_of(named, run, training)
    begun(run, found)
    given.unlink()
    assert tokenizer_of(named, run, training) == found == run_tokenizer(run)
    shutil.copy(files / "b.model", given)
    with pytest.raises(ConfigError, match="given.model is not what the run began with"):
        tokenizer_of(named, run, training)
    shutil.copy(files / "a.model", given)
    (run / TOKENIZER).unlink()  # it is put back
    assert tokenizer_of(named, run, training) == found == run_tokenizer(run)
    shutil.copy(files / "b.model", run / TOKENIZER)
    for read in (lambda: tokenizer_of(config, run, training), lambda: run_tokenizer(run)):
        with pytest.raises(RunDirectoryError, match="and the run began with"):
            read()
    (run / TOKENIZER).unlink()
    with pytest.raises(RunDirectoryError, match=TOKENIZER):
        run_tokenizer(run)


def test_what_an_unfinished_start_left_is_not_taken(config, training, files, tmp_path):
    found = tokenizer_of(changed(config, tokenizer=files / "a.model"), tmp_path, training)
    other = tokenizer_of(changed(config, tokenizer=files / "b.model"), tmp_path, training)
    assert found != other and other.digest == tokenizer_of(
        changed(config, tokenizer=files / "b.model"), tmp_path / "new", training
    ).digest  # fmt: skip


@pytest.mark.parametrize("name", [TOKENIZER, "spiece.model"])
def test_a_decoder_brings_its_own(config, training, files, tmp_path, name):
    start = tmp_path / "start"
    start.mkdir()
    shutil.copy(files / "a.model", start / name)
    (start / "model.safetensors").touch()
    begins = [changed(config, decoder_from=str(path)) for path in (start, *start.glob("*.safe*"))]
    for i, one in enumerate(begins):
        assert tokenizer_of(one, tmp_path / f"run{i}", training).vocab == 400
    other = changed(begins[0], tokenizer=files / "b.model")
    with pytest.raises(ConfigError, match="by which the decoder .* None takes that"):
        tokenizer_of(other, tmp_path / "other", training)
    same = changed(begins[0], tokenizer=files / "a.model")
    assert tokenizer_of(same, tmp_path / "same", training).vocab == 400


def test_a_decoder_whose_words_are_not_known_is_refused(config, training, files, tmp_path):
    """None is made anew for it, and another run's is not taken."""
    (tmp_path / "model.safetensors").touch()
    run = report_run(tmp_path / "run", config, files / "a.model")
    for start in (tmp_path, tmp_path / "model.safetensors"):
        unknown = changed(dataclasses.replace(config, init_from=run), decoder_from=str(start))
        with pytest.raises(ConfigError, match="decoder_from: .* neither tokenizer.model nor spie"):
            tokenizer_of(unknown, tmp_path / "new", training)
        told = changed(unknown, tokenizer=files / "b.model")
        assert tokenizer_of(told, tmp_path / "told", training).vocab == 420


def report_run(folder, config, tokenizer):
    """Make what is looked at of a run of reports."""
    (folder / "checkpoints/1").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"objective": config.objective}))
    shutil.copy(tokenizer, folder / TOKENIZER)
    return str(folder)


def test_a_run_keeps_the_sizes_of_a_decoder_that_is_gone(config, files, tmp_path):
    head = config.objective["head"]
    there = changed(config, head={**head, "decoder": {**head["decoder"], "depth": 5}})
    start = report_run(tmp_path / "start", there, files / "a.model")
    run, named = tmp_path / "run", changed(config, decoder_from=start)
    begun = with_decoder(named, run)
    assert begun.objective["head"]["decoder"]["depth"] == 5
    report_run(run, begun, files / "a.model")
    shutil.rmtree(start)
    assert with_decoder(named, run) == begun
    assert with_decoder(named, tmp_path / "new") == with_decoder(named, None) == named
    other = changed(config, decoder_from=str(tmp_path / "other"))
    assert with_decoder(other, run) == other


def test_a_head_brings_its_tokenizer_unless_it_starts_anew(config, training, files, tmp_path):
    start = report_run(tmp_path / "start", config, files / "a.model")
    same = dataclasses.replace(config, init_from=start)
    assert tokenizer_of(same, tmp_path / "same", training).vocab == 400
    head = config.objective["head"]
    other = changed(same, head={**head, "decoder": {**head["decoder"], "depth": 1}})
    made = tokenizer_of(other, tmp_path / "other", training)
    assert made == tokenizer_of(config, tmp_path / "anew", training)
    (tmp_path / "start" / TOKENIZER).unlink()
    with pytest.raises(ConfigError, match="config.init_from: .* has neither"):
        tokenizer_of(same, tmp_path / "lost", training)


def test_what_cannot_be_used_is_named(config, training, files, tmp_path):
    with pytest.raises(ConfigError, match="config.data.text.tokenizer: .*none.model"):
        tokenizer_of(changed(config, tokenizer=tmp_path / "none.model"), tmp_path, training)
    decoder = {**config.objective["head"]["decoder"], "vocab": 390}
    few = changed(config, tokenizer=files / "a.model", head={"decoder": decoder})
    with pytest.raises(ConfigError, match="vocab is 390, and the tokenizer has 400 pieces"):
        tokenizer_of(few, tmp_path, training)
    tiny = changed(config, head={"decoder": {**decoder, "vocab": 100}})
    with pytest.raises(ConfigError, match="config.objective.head.decoder.vocab: "):
        tokenizer_of(tiny, tmp_path, training)
    films = dataclasses.replace(config, data=dataclasses.replace(config.data, text=None))
    assert tokenizer_of(films, tmp_path, training) is None
