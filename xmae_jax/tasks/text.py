"""The tokenizer of a run: where it comes from, and the copy that the run directory keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from xmae_jax import hosts, init_from
from xmae_jax.checkpoint import step_directories
from xmae_jax.config import Config, ConfigError, objective_of
from xmae_jax.data.manifest import DataError
from xmae_jax.data.text import NORMALISATION, Tokenizer, language_of, normalise
from xmae_jax.data.tokenizer_training import train_tokenizer
from xmae_jax.models.convert_t5 import read_t5
from xmae_jax.models.weight_files import is_weights
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.rundir import TOKENIZER, RunDirectoryError, read_run
from xmae_jax.tasks.reports import reports_of
from xmae_jax.tasks.split import Split
from xmae_jax.writers import write_atomic

PUBLIC = "spiece.model"
"""Its name beside public T5 weights."""


def with_decoder(config: Config, workdir: Path | None) -> Config:
    """Take the decoder's settings from what `decoder_from` names.

    A run in `workdir` that began with it keeps them, whether or not it is still there.
    """
    start = config.objective.get("decoder_from")
    if start is None:
        return config
    try:
        begun = None if workdir is None else _begun_with(workdir, start)
        decoder = begun or _decoder_of(Path(start))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.objective.decoder_from: {error}") from None
    if decoder is None:
        return config
    head = config.objective["head"]
    # What is dropped while training is this run's own affair.
    decoder = {**decoder, "dropout": head["decoder"]["dropout"]}
    if decoder == head["decoder"]:
        return config
    sizes = ", ".join(f"{name} {decoder[name]}" for name in ("width", "depth", "vocab"))
    if hosts.is_first():
        print(f"the decoder is that of {start}, not of the config: {sizes}")
    objective = {**config.objective, "head": {**head, "decoder": decoder}}
    return dataclasses.replace(config, objective=objective)


def _begun_with(workdir: Path, start: str) -> dict[str, Any] | None:
    """Read the settings of a run's decoder if it came from `start`; else None."""
    try:
        objective = json.loads((workdir / "config.json").read_text())["objective"]
        return objective["head"]["decoder"] if objective["decoder_from"] == start else None
    except (OSError, ValueError, KeyError, TypeError):  # what is wrong there is told later
        return None


def _decoder_of(start: Path) -> dict[str, Any] | None:
    """Read the settings of a run's decoder, or of public weights; None if there are neither."""
    if step_directories(start):
        saved = start / "config.json"
        try:
            return json.loads(saved.read_text())["objective"]["head"]["decoder"]
        except (KeyError, TypeError):
            raise ValueError(f"{saved}: that run writes no reports") from None
    return dataclasses.asdict(read_t5(start).config) if is_weights(start) else None


def tokenizer_of(config: Config, workdir: Path, training: Split) -> Tokenizer | None:
    """Return the tokenizer of a run that begins or goes on; None where it reads no text.

    A run that begins gets its copy here. Raises ConfigError where the config names another
    tokenizer than that with which the run began, or than the decoder has that it starts from.
    """
    if config.data.text is None:
        return None
    digest = hosts.from_first(lambda: _settle(config, workdir, training).digest)
    tokenizer = Tokenizer.load(workdir / TOKENIZER)
    if tokenizer.digest != digest:
        raise ConfigError(
            f"{workdir / TOKENIZER}: process {hosts.own()} sees another than process 0"
        )
    rows = config.objective["head"]["decoder"]["vocab"]
    if tokenizer.vocab > rows:
        raise ConfigError(
            f"config.objective.head.decoder.vocab is {rows}, and the tokenizer has"
            f" {tokenizer.vocab} pieces"
        )
    return tokenizer


def text_record(config: Config, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Tell of each source, for `run.json`, how its reports become tokens; nothing without any."""
    if tokenizer is None:
        return {}
    assert config.data.text is not None
    marks = config.data.text.marks
    return {"tokenizer": tokenizer.digest, "normalisation": NORMALISATION, "marks": marks}


def run_tokenizer(workdir: Path) -> Tokenizer:
    """Read the copy that a run keeps; RunDirectoryError if it is not the one that it began with."""
    record, path = read_run(workdir), workdir / TOKENIZER
    try:
        found = Tokenizer.load(path)
    except DataError as error:
        raise RunDirectoryError(str(error)) from None
    wanted = None if record is None else _digest(record.sources)
    if found.digest != wanted:
        raise RunDirectoryError(f"{path}: sha256 {found.digest}, and the run began with {wanted}")
    return found


def _digest(sources: list[dict]) -> str | None:
    return next((source.get("tokenizer") for source in sources), None)


def _settle(config: Config, workdir: Path, training: Split) -> Tokenizer:
    """Find the run's tokenizer, and put a copy into the run directory if there is none."""
    assert config.data.text is not None
    given, copy = config.data.text.tokenizer, workdir / TOKENIZER
    record = read_run(workdir)
    wanted = None if record is None else _digest(record.sources)
    if wanted is not None:
        if given is not None and Path(given).is_file():
            if _load(Path(given)).digest != wanted:
                raise ConfigError(
                    f"config.data.text.tokenizer: {given} is not what the run began with, which"
                    f" {copy} is a copy of"
                )
            if not copy.is_file():
                write_atomic(copy, Path(given).read_bytes())
        return run_tokenizer(workdir)
    source = _of_decoder(config)
    if given is not None:
        found = _load(Path(given))
        if source is not None and _load(source).digest != found.digest:
            raise ConfigError(
                f"config.data.text.tokenizer: {given} is not {source}, by which the decoder"
                " that this run starts from has its words; None takes that"
            )
        source = Path(given)
    if source is not None:
        print(f"tokenizer: {source}")
        write_atomic(copy, source.read_bytes())
    else:
        _train(config, copy, training)
    return Tokenizer.load(copy)


def _load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.load(path)
    except DataError as error:
        raise ConfigError(f"config.data.text.tokenizer: {error}") from None


def _of_decoder(config: Config) -> Path | None:
    """Find the tokenizer by which the decoder that a run starts from has its words.

    None where the decoder starts anew; ConfigError where it does not and nothing says what its
    words are.
    """
    start, key = config.objective["decoder_from"], "objective.decoder_from"
    if start is None:
        start, key = config.init_from, "init_from"
        if start is None or not init_from.has_head(start, objective_of(config, OBJECTIVES)):
            return None
    folder = Path(start).parent if Path(start).is_file() else Path(start)
    for name in (TOKENIZER, PUBLIC):
        if (path := folder / name).is_file():
            return path
    assert config.data.text is not None
    if config.data.text.tokenizer is None:
        raise ConfigError(f"config.{key}: {folder} has neither {TOKENIZER} nor {PUBLIC}; name that"
                          " of its decoder by config.data.text.tokenizer")  # fmt: skip
    return None


def _train(config: Config, copy: Path, training: Split) -> None:
    """Make a tokenizer of the training split's reports, as data_prep.tokenizer would."""
    assert config.data.text is not None
    texts = [
        text
        for report in reports_of(training, skip=config.data.bad_records == "skip")
        for section in report.values()
        if (text := normalise(str(section), config.data.text.marks))
    ]
    rows = config.objective["head"]["decoder"]["vocab"]
    if not texts:
        raise ConfigError("config.data.text.tokenizer is None, and no training study has a report")
    text = " ".join(texts[:100])
    try:
        model = train_tokenizer(texts, vocab=rows, language=language_of(text), fewer=True)
    except DataError as error:
        raise ConfigError(f"config.objective.head.decoder.vocab: {error}") from None
    write_atomic(copy, model)
    print(f"tokenizer: {Tokenizer.load(copy).vocab:,} pieces, made of {len(texts):,} texts of"
          " the training split")  # fmt: skip
