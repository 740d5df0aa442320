"""Write reports of studies as they come: files of any kind, any of them broken.

Files of one study number make a study, of which the model sees as many films as in training,
frontal ones first. `predictions.csv` has a line for each study and `files.csv` for each file;
`reports/` has the texts, and `pictures/` the sentences laid over the films. Study numbers and
patient ids are read to put files together, and are neither written nor shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmae_jax import writers
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.film import FLAGS, Film, FilmError, dicom_ids, read_film
from xmae_jax.data.records import NO_REPORT
from xmae_jax.data.sandbox import Sandbox
from xmae_jax.data.studies import frontal_first
from xmae_jax.data.text import Tokenizer, by_sentence
from xmae_jax.data.views import FRONTAL, LATERAL, view_id
from xmae_jax.rundir import TOKENIZER
from xmae_jax.tasks import overlay, report_overlay
from xmae_jax.tasks.film import view_of
from xmae_jax.tasks.model import LoadedRun
from xmae_jax.tasks.outputs import ABOUT, PREDICTIONS, NoFilm, Table, make_output, shown
from xmae_jax.tasks.report_overlay import Sentence
from xmae_jax.tasks.shown import NARROW, OnDevices, made_as, record_of
from xmae_jax.tasks.text import run_tokenizer

FILES, REPORTS, PICTURES = "files.csv", "reports", "pictures"
COLUMNS = (
    "number files status reason flags views films tokens sentences complete mean_log_probability"
    " report"
).split()
FILE_COLUMNS = "number file study status reason flags view kind height width".split()


class File(NamedTuple):
    """A file to be read."""

    number: int
    name: str


@dataclasses.dataclass(frozen=True)
class Study:
    """Files that are taken together."""

    number: int
    said: bool
    """Whether they say themselves that they belong together."""
    files: list[File]


class Shown(NamedTuple):
    """A film, and what the model is shown of it."""

    file: File
    film: Film
    record: dict[str, Any]
    placed: overlay.Placed


class Verdict(NamedTuple):
    """What becomes of a file."""

    file: File
    status: str
    """"ok", "left out" or "rejected"."""
    reason: str
    film: Film | None


class Seen(NamedTuple):
    """A study, and what is used of it; nothing where it is rejected."""

    study: Study
    used: list[Shown]
    files: list[Verdict]
    reason: str


class Told(NamedTuple):
    """What the model writes of a study."""

    text: str
    sentences: list[Sentence]
    tokens: int
    complete: bool
    """Whether it came to an end, and was not cut at the most tokens that the run allows."""
    mean_log_probability: float


def run(config: Config, loaded: LoadedRun, files: Sequence[str]) -> None:
    """Write a report of each study; raise NoFilm if not one file can be used."""
    _refuse(config, loaded)
    named = list(find(files))
    if not named:
        raise ConfigError(f"no file in {', '.join(files)}")
    with contextlib.closing(Sandbox()) as sandbox:
        studies = grouped(named, sandbox.each(dicom_ids, ((name,) for name, _ in named)))
        model = Reporter(loaded, config, studies=len(studies))
        output = make_output(config, loaded.workdir, folders=[REPORTS, PICTURES])
        films = sandbox.each(read_film, ((f.name,) for study in studies for f in study.files))
        with contextlib.closing(_Writer(output)) as writer:
            for first in range(0, len(studies), model.rows):
                some = [_seen(one, films, model) for one in studies[first : first + model.rows]]
                told = iter(model.tell([seen.used for seen in some if seen.used]))
                for seen in some:
                    writer.write(seen, next(told) if seen.used else None)
    assert config.data.text is not None
    about = {
        "run": str(loaded.workdir),
        "step": loaded.step,
        "studies": {"files": len(named), "studies": len(studies), "reports": writer.reports},
        "made_as": model.made_as,
        "sections": config.data.text.sections,
        "generate": dataclasses.asdict(loaded.objective.generate),
        "pictures": report_overlay.NOTE,
    }
    writers.write_atomic(output / ABOUT, json.dumps(about, indent=1) + "\n")
    print(f"{writer.reports} of {len(studies)} studies have a report: {output}")
    if not writer.reports:
        raise NoFilm(f"none of {len(named)} files can be used: {output / FILES} says why")


def _refuse(config: Config, loaded: LoadedRun) -> None:
    """Raise ConfigError for a run that sees no film, and for what is of no use here."""
    text = config.data.text
    assert text is not None
    if not text.views:
        raise ConfigError(
            f"--workdir={loaded.workdir}: data.text.views is 0: it learnt from reports alone, and"
            " sees no film"
        )
    for name in ("heat", "maps"):
        if getattr(config.predict, name) != getattr(loaded.config.predict, name):
            raise ConfigError(
                f"config.predict.{name} is for runs that predict findings; of a report every"
                " sentence is drawn, where the decoder's attention lay"
            )
    if text.language == "auto" and "language" in text.prefix:
        print("note: config.data.text.language is \"auto\", and there is no report to tell it from:"
              " the model is told \"en\"")  # fmt: skip


def find(files: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Name files, each once, and the folder that each lies in if it was found by its folder."""
    seen: set[str] = set()
    for name, folder in _named(files):
        real = os.path.realpath(name)
        if real in seen:
            print(f"note: {shown(name)} is named twice, and read once")
            continue
        seen.add(real)
        yield name, folder


def _named(files: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    for name in files:
        if not os.path.isdir(name):
            yield name, None
            continue
        for folder, below, names in os.walk(name):
            below.sort()
            yield from ((os.path.join(folder, one), folder) for one in sorted(names))


def grouped(
    named: Sequence[tuple[str, str | None]], ids: Iterable[tuple[str, str] | FilmError]
) -> list[Study]:
    """Group files by patient and study number; without the latter, by patient and folder.

    ids: of each file, both empty where it has none. Studies stand in the order of their first
    files.
    """
    found: dict[tuple, Study] = {}
    for number, ((name, folder), one) in enumerate(zip(named, ids, strict=True), 1):
        ids_of = ("", "") if isinstance(one, FilmError) else one
        said = bool(ids_of[1])
        if said:
            key = ("study", *ids_of)
        else:
            key = ("file", number) if folder is None else ("folder", folder, ids_of[0])
        study = found.setdefault(key, Study(len(found) + 1, said, []))
        study.files.append(File(number, name))
    return list(found.values())


class Reporter:
    """A loaded run on its devices."""

    def __init__(self, loaded: LoadedRun, config: Config, *, studies: int):
        """Place the parameters; `studies` is how many there are at most."""
        assert config.data.text is not None
        self.films = config.data.text.views
        self._tokenizer: Tokenizer = run_tokenizer(loaded.workdir)
        self._view = view_of(
            config, loaded.objective, train=False, tokenizer=loaded.workdir / TOKENIZER
        )
        self._grid, self._end = loaded.objective.grid, loaded.objective.generate.end
        self.made_as = made_as(loaded)
        self._devices = OnDevices(loaded, config, most=studies)
        self.rows = self._devices.rows
        self._explain = self._devices.compile(loaded.objective.predict_fns()["explain"])

    def see(self, file: File, answer: Film | FilmError) -> Shown | FilmError:
        """Make a film what the model is shown of it."""
        if isinstance(answer, FilmError):
            return answer
        record, placed = record_of(answer, self.made_as)
        if not self._example([record])["valid"].any():
            return FilmError(NARROW)
        return Shown(file, answer, record, placed)

    def _example(self, records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        # Nobody tells what the films were taken for.
        return self._view({"films": records, "report": NO_REPORT}, np.random.default_rng(0))

    def tell(self, studies: Sequence[Sequence[Shown]]) -> list[Told]:
        """Write of `rows` studies at most."""
        if not studies:
            return []
        examples = [self._example([film.record for film in films]) for films in studies]
        made = self._devices.run(self._explain, self._devices.batch(examples))
        names = ("written", "log_prob", "read", "valid")
        arrays = [np.asarray(made[name]) for name in names]
        return [
            self._told(*row, films=len(films))
            for films, *row in zip(studies, *arrays, strict=False)  # a batch is filled up
        ]

    def _told(
        self,
        written: np.ndarray,
        log_prob: np.ndarray,
        read: np.ndarray,
        valid: np.ndarray,
        *,
        films: int,
    ) -> Told:
        """Cut a text into sentences: written, log_prob [t]; read [t s n]; valid [s n]."""
        texts, place = by_sentence(self._tokenizer, written)
        ends = np.flatnonzero(written == self._end)
        tokens = int(ends[0]) + 1 if ends.size else len(written)
        even = max(int(valid.sum()), 1)
        sentences = []
        for number, text in enumerate(texts):
            own = place == number
            weights = read[own].sum(axis=0, dtype=np.float64) * valid  # s n
            weights *= even / max(weights.sum(), np.finfo(np.float64).tiny)
            maps = weights[:films].reshape(films, *self._grid).astype(np.float32)
            sentences.append(Sentence(text, float(np.exp(log_prob[own].mean())), tuple(maps)))
        return Told(
            text=self._tokenizer.decode(written),
            sentences=sentences,
            tokens=tokens,
            complete=bool(ends.size),
            mean_log_probability=float(log_prob[:tokens].mean(dtype=np.float64)),
        )


def _seen(study: Study, films: Iterator[Film | FilmError], model: Reporter) -> Seen:
    """Read the files of a study, and choose of its films."""
    verdicts: dict[int, Verdict] = {}
    kept: list[Shown] = []
    for file in study.files:
        one = model.see(file, next(films))
        if isinstance(one, FilmError):
            verdicts[file.number] = Verdict(file, "rejected", one.reason, None)
            continue
        verdicts[file.number] = Verdict(file, "ok", "", _facts(one.film))
        kept.append(one)
        order = frontal_first([shown.film.view for shown in kept])
        for i in order[model.films :]:
            out = verdicts[kept[i].file.number]
            verdicts[out.file.number] = out._replace(
                status="left out", reason=f"the model reads {model.films} film(s) of a study"
            )
        kept = [kept[i] for i in order[: model.films]]
    usable = sum(one.status != "rejected" for one in verdicts.values())
    reason = ""
    if not usable:
        (first, *more) = verdicts.values()
        reason = first.reason if not more else f"none of its {1 + len(more)} files can be used"
    elif not study.said and usable > model.films:
        reason = (
            f"{usable} films of no study number in one folder may be of several studies: name each"
        )
        verdicts = {
            number: one
            if one.status == "rejected"
            else one._replace(status="left out", reason=reason)
            for number, one in verdicts.items()
        }
        kept = []
    elif usable < len(verdicts):
        reason = f"{len(verdicts) - usable} of its {len(verdicts)} files cannot be used"
    return Seen(study, kept, list(verdicts.values()), reason)


def _facts(film: Film) -> Film:
    """Forget the pixels, of which a study may have many."""
    return dataclasses.replace(film, pixels=np.zeros((0, 0), np.uint8))


class _Writer:
    """Writes the tables line by line, the reports and the pictures."""

    def __init__(self, output: Path):
        self._output, self.reports = output, 0
        self._studies = Table(output / PREDICTIONS, COLUMNS)
        self._files = Table(output / FILES, FILE_COLUMNS)

    def close(self) -> None:
        """Close the tables."""
        self._studies.close()
        self._files.close()

    def write(self, seen: Seen, told: Told | None) -> None:
        """Write all of a study; told: None if it is rejected."""
        number, names = seen.study.number, [file.name for file in seen.study.files]
        for one in seen.files:
            self._file(number, one)
            if one.status != "ok" and one.reason != seen.reason:
                print(f"  file {one.file.number} ({shown(one.file.name)}): {one.status}:"
                      f" {one.reason}")  # fmt: skip
        status = "rejected" if told is None else "ok"
        start = [number, "; ".join(names), status, seen.reason]
        who = f"study {number} ({shown(names[0])}"
        who += f" and {len(names) - 1} more)" if len(names) > 1 else ")"
        if told is None:
            self._studies.write(start)
            print(f"{who}: rejected: {seen.reason}")
            return
        self.reports += 1
        flags = sorted({flag for one in seen.used for flag in _flags(one, seen.used)})
        if not seen.study.said and len(names) > 1:
            print(f"note: study {number} is {len(names)} files of no study number that lie in one"
                  " folder: see that they are of one study")  # fmt: skip
        facts = [" ".join(flags), " ".join(one.film.view or "unknown" for one in seen.used)]
        facts += [len(seen.used), told.tokens, len(told.sentences)]
        facts += ["yes" if told.complete else "no", f"{told.mean_log_probability:.6g}"]
        self._studies.write([*start, *facts, told.text])
        (self._output / REPORTS / f"{number:04d}.txt").write_text(told.text + "\n", "utf-8")
        picture = report_overlay.draw(
            [_panel(one, seen.used) for one in seen.used],
            told.sentences,
            title=f"Study {number}: written by a model and read by nobody",
        )
        (self._output / PICTURES / f"{number:04d}.png").write_bytes(picture)
        warned = f" ({', '.join(flags)})" if flags else ""
        print(f"{who}: {len(seen.used)} film(s), {len(told.sentences)} sentence(s), probability of"
              f" a token {np.exp(told.mean_log_probability):.2f}{warned}")  # fmt: skip

    def _file(self, study: int, one: Verdict) -> None:
        facts: list[Any] = []
        if (film := one.film) is not None:
            facts = [" ".join(film.flags), film.view, film.kind, *film.original_size]
        number, name = one.file
        self._files.write([number, name, study, one.status, one.reason, *facts])


def _flags(one: Shown, used: Sequence[Shown]) -> list[str]:
    """Return what is unusual of a film; a lateral one is not, beside a frontal one."""
    both = any(view_id(other.film.view) == FRONTAL for other in used)
    usual = {"view"} if both and view_id(one.film.view) == LATERAL else set()
    return [flag for flag in one.film.flags if flag not in usual]


def _panel(one: Shown, used: Sequence[Shown]) -> report_overlay.Panel:
    view = one.film.view or "view unknown"
    warnings = tuple(f"{flag}: {FLAGS[flag]}" for flag in _flags(one, used))
    return report_overlay.Panel(
        one.film.pixels, one.placed, f"film {one.file.number}: {view}", warnings
    )
