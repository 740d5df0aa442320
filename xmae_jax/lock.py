"""One owner per run directory.

On a disk the owner holds `flock` on `<workdir>/lock`, which the kernel frees however it dies. Where
that is not to be had or is known to one host only (object stores, some shared file systems), the
owner rewrites its record every BEAT_S seconds, and a newcomer takes over a record that stands
still for WATCH_S seconds of the newcomer's own monotonic clock. Nothing depends on the time of day.

A child that was forked without exec shares the flock for as long as it lives; one that was spawned
or run as a program does not.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pydantic
import tensorstore as ts

BEAT_S = 10.0
WATCH_S = 30.0
_NO_FLOCK = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}


class _Owner(pydantic.BaseModel, frozen=True):
    """What the lock says of a run."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601; for people, and to tell runs apart."""
    job: str | None
    attempt: int
    counter: int

    def replaces(self, other: _Owner) -> bool:
        """Tell whether the scheduler started this run in place of the other."""
        return self.job is not None and self.job == other.job and self.attempt > other.attempt


def _this_run() -> _Owner:
    return _Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now(UTC).isoformat(),
        job=os.environ.get("SLURM_JOB_ID"),
        attempt=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        counter=0,
    )


def _parse(record: bytes) -> _Owner | None:
    """Read a record; None if there is none, or half of one."""
    try:
        return _Owner.model_validate_json(record)
    except pydantic.ValidationError:
        return None


class Locked(Exception):
    """The run directory is another run's; main exits 73."""

    def __init__(self, where: str, record: bytes):
        by = "unknown owner"
        if owner := _parse(record):
            by = f"process {owner.pid} on {owner.host} since {owner.since}"
        super().__init__(f"{where} is in use by {by}")


class _File:
    """A lock file under flock. Raises Locked, or OSError where there is no flock.

    `read` returns the record, b"" if there is none. `write` replaces what was last read or, given
    None, removes it; it returns false if another was faster. Two hosts that do not see each
    other's flock may both take over in one moment; the first to write learns it at its next beat.
    """

    flocked = True

    def __init__(self, directory: Path):
        self.where = str(directory)
        self._path = directory / "lock"
        directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            record = os.pread(self._file, 4096, 0)
            self.close()
            if isinstance(error, BlockingIOError):
                raise Locked(self.where, record) from None
            raise

    def read(self) -> bytes:
        try:
            return self._path.read_bytes()  # opened anew, so that NFS asks its server
        except FileNotFoundError:
            return b""

    def write(self, record: bytes | None) -> bool:
        # Its last owner may have removed the file between our opening and locking it.
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file)):
            return False
        if record is None:
            self._path.unlink()
        else:
            os.pwrite(self._file, record, 0)
            os.ftruncate(self._file, len(record))
            os.fsync(self._file)  # other hosts are to see it
        return True

    def close(self) -> None:
        os.close(self._file)


class _Object:
    """The same in a store with conditional writes."""

    flocked = False

    def __init__(self, store: ts.KvStore):
        self.where = store.url
        self._store = store
        self._version = b""

    def read(self) -> bytes:
        result = self._store.read("lock").result()
        self._version = result.stamp.generation
        return result.value

    def write(self, record: bytes | None) -> bool:
        stamp = self._store.write("lock", record, if_equal=self._version).result()
        return stamp.generation != b""

    def close(self) -> None:
        pass


def _open(place: Path | ts.KvStore) -> _File | _Object:
    if isinstance(place, ts.KvStore):
        return _Object(place)
    try:
        return _File(place)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    # By default this driver guards its writes by locks of the kind that has just failed.
    spec = {"driver": "file", "path": f"{place}/", "file_io_locking": {"mode": "lockfile"}}
    return _Object(ts.KvStore.open(spec).result())


def _take(cell: _File | _Object, run: _Owner, *, watch: float) -> bool:
    """Put a run's record where there is none, or over a dead owner's.

    Returns false if another run was faster; raises Locked if the owner lives.
    """
    record = cell.read()
    owner = _parse(record)
    # We hold the flock, so an owner on this very host is dead.
    dead = owner is not None and (run.replaces(owner) or (cell.flocked and owner.host == run.host))
    polls = 0 if dead or not record else 30
    for _ in range(polls):
        time.sleep(watch / polls)
        now = cell.read()
        if not now:
            break
        if now != record:
            raise Locked(cell.where, now)
    return cell.write(run.model_dump_json().encode())


class RunLock:
    """Ownership of a run directory, until released."""

    def __init__(self, cell: _File | _Object, run: _Owner, *, beat: float, made: Path | None):
        self._cell, self._run, self._made = cell, run, made
        self._lost: Locked | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beats, args=(beat,), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise Locked if another run has taken over; noticed at the beat after it did."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Remove the lock if it is still ours, and the directory if we made it and it is empty."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._replace(None)
        self._cell.close()
        if self._made is not None:
            with suppress(OSError):
                self._made.rmdir()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beats(self, beat: float) -> None:
        for counter in itertools.count(1):
            if self._stop.wait(beat) or self._lost is not None:
                return
            self._replace(self._run.model_copy(update={"counter": counter}))

    def _replace(self, run: _Owner | None) -> None:
        """Replace or remove our own record, or note whose stands there."""
        try:
            record = self._cell.read()
            owner = _parse(record)
            if owner is None or owner.model_copy(update={"counter": 0}) != self._run:
                self._lost = Locked(self._cell.where, record)
                return
            self._cell.write(run.model_dump_json().encode() if run else None)
        except Exception as error:  # a store out of reach raises many types; the next beat retries
            told = f"{self._cell.where}: the lock was not renewed: {error}"
            print(told, file=sys.stderr, flush=True)


def acquire(place: Path | ts.KvStore, *, beat: float = BEAT_S, watch: float = WATCH_S) -> RunLock:
    """Become the owner of a run directory: a path, made if need be, or a store opened at it.

    Raises Locked if another run owns it, having touched nothing: at once by flock, else within
    `watch` seconds. What a killed run left is taken over at once by flock, else after `watch`.
    """
    run, made = _this_run(), None
    if isinstance(place, Path):
        place = place.absolute()
        made = None if place.exists() else place
    gone = 0
    while True:
        with ExitStack() as undo:
            try:
                cell = _open(place)
                undo.callback(cell.close)
                if _take(cell, run, watch=watch):
                    undo.pop_all()
                    return RunLock(cell, run, beat=beat, made=made)
            except FileNotFoundError:
                # A run that releases may remove the file or the directory at any moment: begin
                # anew. That it does so ten times is not credible.
                gone += 1
                if gone == 10:
                    raise
