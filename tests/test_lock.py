"""One owner per run directory: who is refused, who takes over, and what is left behind."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorstore as ts

from xmae_jax import lock

OWNER = """
import os, subprocess, sys
from pathlib import Path
from xmae_jax import lock
with lock.acquire(Path(sys.argv[1])):
    if sys.argv[2:]:
        subprocess.Popen(sys.argv[2:], close_fds=False)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


class Owner:
    """A program that owns a directory until its input is closed, perhaps with a child process."""

    def __init__(self, folder, *, prefix=(), child=()):
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", OWNER, str(folder), *child],
            cwd=Path(lock.__file__).parents[1], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.pid = int(self.process.stdout.readline())

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def record(host="elsewhere", *, job=None, attempt=0, counter=0):
    fields = dict(host=host, pid=4711, since="2020-02-02T02:02:02+00:00", job=job)
    return json.dumps(fields | {"attempt": attempt, "counter": counter}).encode()


def snapshot(folder):
    paths = sorted(folder.rglob("*"))
    return [(p, p.stat().st_size, p.stat().st_mtime_ns, p.read_bytes()) for p in paths]


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def no_flock(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")


class Place:
    """A run directory of one of three kinds, with the record in its lock."""

    def __init__(self, kind, folder):
        self.path = folder / "run" / "lock"
        self.store = ts.KvStore.open("memory://run/").result() if kind == "store" else None

    def acquire(self, **seconds):
        return lock.acquire(self.store or self.path.parent, **seconds)

    def put(self, value):
        if self.store:
            self.store.write("lock", value).result()
        elif not self.path.exists():
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_bytes(value)
        else:
            with self.path.open("r+b") as file:  # in place, as another host would
                file.write(value)
                file.truncate()

    def get(self):
        if self.store:
            return self.store.read("lock").result().value
        return self.path.read_bytes() if self.path.exists() else b""


@pytest.fixture(params=["flock", "no flock", "store"])
def place(request, tmp_path, monkeypatch):
    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", no_flock)
    return Place(request.param, tmp_path)


@pytest.fixture
def slept(monkeypatch):
    """Let sleep pass at once, and return the seconds."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def test_a_second_start_is_refused_and_touches_nothing(tmp_path):
    with Owner(tmp_path) as owner:
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        before, begin = snapshot(tmp_path), time.monotonic()
        with pytest.raises(lock.Locked) as refusal:
            lock.acquire(tmp_path)
        assert time.monotonic() - begin < 1
        assert snapshot(tmp_path) == before
        message, saved = str(refusal.value), json.loads((tmp_path / "lock").read_text())
        assert saved["pid"] == owner.pid and saved["host"] == socket.gethostname()
        for part in (tmp_path, saved["pid"], saved["host"], saved["since"]):
            assert str(part) in message
        assert saved["since"].endswith("+00:00")


def test_the_lock_of_a_killed_run_is_free_at_once(tmp_path):
    with Owner(tmp_path, child=["cat"]) as owner:
        owner.kill()  # `cat` lives on, and would hold what it had inherited
        begin = time.monotonic()
        with lock.acquire(tmp_path):
            assert time.monotonic() - begin < 1
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_release_leaves_no_trace(place, tmp_path):
    with place.acquire() as owner:
        assert place.get()
    assert not place.get() and list(tmp_path.iterdir()) == []
    owner.release()  # once more is harmless


def test_a_release_leaves_what_is_not_its_own(tmp_path):
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    lock.acquire(empty).release()
    with lock.acquire(full):
        (full / "config.json").write_text("{}")
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["empty", "full", "config.json"]


def race(folder, start, wins):
    """Try for ten directories, each at the same moment as another process does."""
    for turn in range(10):
        start.wait(30)
        try:
            owner = lock.acquire(folder / str(turn), beat=0.05, watch=3.0)
        except lock.Locked:
            owner = None
        start.wait(30)
        if owner:
            wins.put(turn)
            owner.release()


def race_without_flock(*args):
    fcntl.flock = no_flock
    race(*args)


@pytest.mark.parametrize("target", [race, race_without_flock])
def test_of_two_that_come_at_once_one_gets_in(tmp_path, target):
    spawn = multiprocessing.get_context("spawn")
    start, wins = spawn.Barrier(2), spawn.SimpleQueue()
    both = [spawn.Process(target=target, args=(tmp_path, start, wins)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(wins.get() for _ in iter(wins.empty, True)) == list(range(10))


def test_a_lock_that_is_removed_while_it_is_opened_is_not_taken(tmp_path, monkeypatch):
    flock, path = fcntl.flock, tmp_path / "lock"

    def late(*args):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()  # one run releases
        path.touch()  # another comes
        flock(*args)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.acquire(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_living_owner_elsewhere_is_found_by_its_beat(place):
    place.put(record())
    threading.Timer(0.2, place.put, [record(counter=1)]).start()
    with pytest.raises(lock.Locked, match="process 4711 on elsewhere since 2020-02-02T02:02"):
        place.acquire(watch=9.0)
    assert place.get() == record(counter=1)


def test_a_dead_owner_elsewhere_is_watched_and_taken_over(place, slept):
    place.put(record())
    with place.acquire():
        assert sum(slept) == pytest.approx(30)
        assert json.loads(place.get())["pid"] == os.getpid()
    assert not place.get()


def test_a_lock_released_while_it_is_watched_is_free(place):
    place.put(record())
    release = (lambda: place.put(None)) if place.store else place.path.unlink
    threading.Timer(0.2, release).start()
    begin = time.monotonic()
    with place.acquire(watch=9.0):
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(("job", "attempt", "at_once"), [
    ("7", 2, True), ("7", 1, False), ("7", 0, False), ("8", 2, False), (None, 2, False),
])  # fmt: skip
def test_a_restart_by_the_scheduler_takes_over_at_once(
    place, monkeypatch, slept, job, attempt, at_once
):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(attempt))
    place.put(record(job="7" if job else None, attempt=1))
    with place.acquire():
        assert (not slept) == at_once


def test_an_owner_beats_and_learns_that_it_was_replaced(place):
    with place.acquire(beat=0.05) as owner:
        wait_for(lambda: json.loads(place.get())["counter"] >= 2)
        owner.check()
        with pytest.raises(lock.Locked, match="process 4711 on elsewhere"):
            wait_for(lambda: place.put(record()) or owner.check())
    assert place.get() == record()


def test_an_owner_learns_that_its_lock_was_removed(tmp_path):
    with lock.acquire(tmp_path, beat=0.05) as owner:
        (tmp_path / "lock").unlink()
        with pytest.raises(lock.Locked, match="unknown owner"):
            wait_for(owner.check)
    assert list(tmp_path.iterdir()) == []


def test_a_store_out_of_reach_is_tried_again(place, monkeypatch, capsys):
    told = []
    with place.acquire(beat=0.05) as owner:
        with monkeypatch.context() as broken:
            broken.setattr(type(owner._cell), "read", lambda _: 1 / 0)
            wait_for(
                lambda: (
                    told.append(capsys.readouterr().err)
                    or "the lock was not renewed" in "".join(told)
                )
            )
        counter = json.loads(place.get())["counter"]
        wait_for(lambda: json.loads(place.get())["counter"] > counter)
        owner.check()


@pytest.mark.parametrize("half", [b"", record()[:30], b"[]", b"\xff"])
def test_a_half_written_lock(tmp_path, slept, half):
    with lock.acquire(tmp_path):
        (tmp_path / "lock").write_bytes(half)
        with pytest.raises(lock.Locked, match="is in use by unknown owner"):
            lock.acquire(tmp_path)
    assert (tmp_path / "lock").read_bytes() == half
    with lock.acquire(tmp_path):
        assert bool(slept) == bool(half)


@pytest.mark.parametrize("date", ["2031-01-01", "2019-01-01"])
def test_the_time_of_day_decides_nothing(tmp_path, date):
    if shutil.which("faketime") is None:
        pytest.skip("no command faketime")
    with Owner(tmp_path, prefix=["faketime", date]) as owner:
        assert date in (tmp_path / "lock").read_text()
        with pytest.raises(lock.Locked, match=f"since {date}"):
            lock.acquire(tmp_path)
        owner.kill()
        lock.acquire(tmp_path).release()
