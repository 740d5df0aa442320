"""The parts of a build: what each shard is to hold, and how one is made, kept and made again.

A part is a pure function of its jobs, the settings and the key. Beside each finished part stands a
JSON file of what became of its inputs, so that a build that was killed goes on after the last part,
and whatever ran the parts (threads here, Beam elsewhere) the end is the same.
"""

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from data_prep import splits
from data_prep.films import Job, Settings, make_record
from data_prep.inputs import mask_digest, sha256_of
from xmae_jax.data import records
from xmae_jax.data.film import FilmError
from xmae_jax.data.index import Entry
from xmae_jax.data.limits import MAX_BYTES
from xmae_jax.data.manifest import FORMAT, file_digest
from xmae_jax.data.sandbox import PASSING, Sandbox, preload
from xmae_jax.seal import json_digest, seal, unseal

preload(["data_prep.films"])
Tell = Callable[[int, int], None]  # films done, of them rejected


@dataclass(frozen=True)
class Part:
    """One shard to be made in a folder."""

    folder: Path
    name: str
    split: str
    jobs: tuple[Job, ...]

    @property
    def path(self) -> Path:
        """Where the records go."""
        return self.folder / self.name

    @property
    def notes(self) -> Path:
        """Where stands what became of the inputs."""
        return self.folder / f"{self.name}.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a part's inputs."""

    entries: tuple[Entry, ...]  # of the records, in order
    films: tuple[str, ...]  # likewise
    rejected: tuple[tuple[str, str], ...]  # film, reason
    digests: dict[str, str]  # film -> digest of its files
    sha256: str  # of the part


@dataclass(frozen=True)
class Recipe:
    """How every part of a build is made."""

    settings: Settings
    key: Path  # read where parts are made, so that no job description holds a secret
    versions: tuple[tuple[str, str], ...]  # of the packages that decode and encode

    def digest(self, part: Part) -> str:
        """Name what a part is made from, but for the contents of the files."""
        jobs = [
            (job.film, job.mask is None, repr(job.row), job.report, job.patient)
            for job in part.jobs
        ]
        key = splits.fingerprint(splits.load_key(self.key))
        return json_digest([FORMAT, part.split, jobs, repr(self.settings), key, self.versions])


def plan_parts(folder: Path, jobs: Sequence[Job]) -> list[Part]:
    """Cut the films of each split into parts."""
    by_film = {job.film: job for job in jobs}
    parts = []
    for split in records.SPLITS:
        members = [job.film for job in jobs if job.split == split]
        for index, films in enumerate(splits.shards(members)):
            made = tuple(by_film[film] for film in films)
            parts.append(Part(folder, f"{split}-{index:05d}", split, made))
    return parts


def digest_job(job: Job) -> str:
    """Hash a film's file, unless it is too large to be read, and its mask's."""
    with contextlib.suppress(OSError):
        if (size := job.path.stat().st_size) > MAX_BYTES:
            return f"{size} bytes"
    return f"{sha256_of(job.path)} {mask_digest(job.mask) if job.mask else ''}"


def build_part(part: Part, recipe: Recipe, sandbox: Sandbox, *, tell: Tell) -> None:
    """Make one part, unless it is there already and its inputs are what they were."""
    digest = recipe.digest(part)
    kept = _finished(part, digest)
    if kept is not None:
        tell(len(part.jobs), len(kept.rejected))
        return
    key = splits.load_key(recipe.key)
    digests: dict[str, str] = {}
    rejected: list[tuple[str, str]] = []
    made: list[tuple[str, Entry]] = []

    def examples() -> Iterator[bytes]:
        calls = ((job, recipe.settings, key) for job in part.jobs)
        for job, one in zip(part.jobs, sandbox.each(make_record, calls), strict=True):
            digests[job.film] = digest_job(job)
            if isinstance(one, FilmError):
                if not os.path.lexists(job.path):
                    raise FileNotFoundError("a file of the input vanished meanwhile") from None
                rejected.append((job.film, one.reason))
                tell(1, 1)
                continue
            made.append((job.film, one.entry))
            yield one.example
            tell(1, 0)

    half = part.path.with_suffix(f".{uuid.uuid4().hex}.half")
    records.write_shard(half, examples())
    notes = {
        "recipe": digest,
        "sha256": file_digest(half),
        "digests": digests,
        "rejected": rejected,
        "films": [film for film, _ in made],
        "entries": [entry for _, entry in made],
    }
    half.rename(part.path)
    half.write_text(json.dumps(seal(notes)))
    half.rename(part.notes)


def _finished(part: Part, digest: str) -> Outcome | None:
    """Read what became of a part; None where it is to be made (again)."""
    try:
        notes = _notes(part)
    except (OSError, ValueError):
        return None
    if notes["recipe"] != digest or not part.path.is_file():
        return None
    if file_digest(part.path) != notes["sha256"]:
        return None
    if any(reason.startswith(PASSING) for _, reason in notes["rejected"]):
        return None  # another try
    if any(digest_job(job) != notes["digests"].get(job.film) for job in part.jobs):
        return None
    return _outcome(notes)


def _notes(part: Part) -> dict[str, Any]:
    return unseal(part.notes.read_text())


def read_outcome(part: Part) -> Outcome:
    """Read what became of a finished part's inputs."""
    return _outcome(_notes(part))


def _outcome(notes: dict[str, Any]) -> Outcome:
    return Outcome(
        entries=tuple(Entry._make(entry) for entry in notes["entries"]),
        films=tuple(notes["films"]),
        rejected=tuple((film, reason) for film, reason in notes["rejected"]),
        digests=notes["digests"],
        sha256=notes["sha256"],
    )


class Workers:
    """Sandboxes, and a thread for each that feeds it."""

    def __init__(self, count: int) -> None:
        """Start no process yet."""
        self._all = [Sandbox() for _ in range(count)]
        self._free: SimpleQueue[Sandbox] = SimpleQueue()
        for sandbox in self._all:
            self._free.put(sandbox)
        self._threads = ThreadPoolExecutor(count)
        self._stop = threading.Event()

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """Return `function(item, sandbox)` of all, in order; the first error ends it."""

        def one(item: Any) -> Any:
            sandbox = self._free.get()
            try:
                return None if self._stop.is_set() else function(item, sandbox)
            finally:
                self._free.put(sandbox)

        futures = [self._threads.submit(one, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            self._stop.set()
            self._threads.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for sandbox in self._all:
            sandbox.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for sandbox in self._all:
            sandbox.close()
