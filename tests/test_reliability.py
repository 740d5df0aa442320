"""What docs/reliability.md promises of whole runs: each fault is made to happen, and looked at."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.runs import again, assert_same_run, command, finish, key, lines, start
from xmae_jax.data.plan import Plan
from xmae_jax.data.records import Records
from xmae_jax.rundir import read_run
from xmae_jax.tasks import rollback

THIRTY = "--config.total_steps=30"


def copy(workdir, target):
    shutil.copytree(workdir, target)
    return target


def rewind(reference, target):
    """Copy the finished reference run and take it back to where step 30 is not yet saved."""
    copy(reference, target)
    shutil.rmtree(target / "checkpoints" / "30")
    (target / "final.json").unlink()
    return target


# Checkpoints.


def test_a_damaged_step_is_left_for_the_one_before(reference, tmp_path):
    workdir = copy(reference, tmp_path / "run")
    for data in (workdir / "checkpoints/30/state").rglob("d/*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 16
        data.write_bytes(content)
    rc, out = finish(again(workdir, "--task=verify"))
    report = json.loads(out[out.index("{") : out.rindex("}") + 1])
    assert rc == 74 and [s["status"] for s in report["steps"]] == ["damaged", "verified"]
    rc, out = finish(again(workdir))
    assert rc == 0, out
    assert "checkpoint 30: " in out and "resumed at step 20" in out
    assert "Traceback" not in out and "never retrieved" not in out
    fallback, resume = lines(workdir, "event")
    assert (fallback["event"], fallback["step"]) == ("fallback", 20)
    assert "checkpoint 30" in fallback["problems"][0] and resume["event"] == "resume"
    assert assert_same_run(workdir, reference, steps=30, interval=11) == 10
    assert (workdir / "checkpoints/abandoned/30").is_dir()
    rc, out = finish(again(workdir, "--task=verify"))
    assert rc == 0, out


def test_no_usable_step_is_no_fresh_start(reference, tmp_path):
    workdir = copy(reference, tmp_path / "run")
    for path in workdir.glob("checkpoints/*/state/manifest.ocdbt"):
        path.unlink()
    rc, out = finish(again(workdir))
    assert rc == 74 and "no checkpoint can be used" in out and "--allow_fresh" in out, out
    rc, out = finish(again(workdir, "--allow_fresh"))
    assert rc == 0 and "fell back to step 0" in out, out
    assert_same_run(workdir, reference, steps=30, interval=31)
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"20", "30", "abandoned"}


def test_a_run_goes_back_and_past_the_batches_that_led_astray(shards, reference, tmp_path):
    workdir = copy(reference, tmp_path / "run")
    before = {line["step"]: key(line) for line in lines(workdir)}
    rc, out = finish(again(workdir, "--task=rollback", "--step=20"))
    assert rc == 0 and "goes on from step 20" in out, out
    assert [p.name for p in (workdir / "checkpoints/abandoned").iterdir()] == ["30"]
    assert not (workdir / "final.json").exists()
    rc, out = finish(again(workdir))
    assert rc == 0 and "resumed at step 20" in out, out
    after = {line["step"]: key(line) for line in lines(workdir)}
    assert all(after[step] == before[step] for step in range(1, 21))
    assert not {d for _, d in before.values()} & {after[step][1] for step in range(21, 31)}
    # Passing over ten batches: steps 21 to 30 read what steps 31 to 40 would have read.
    assert read_run(workdir).offsets == ((20, 10),)
    source = read_run(workdir).sources[0]
    plan = Plan(0, (source["records"],), (8,), (source["digest"],))
    for step in range(21, 31):
        assert after[step][1] == plan.batch_digest(step + 10 - 1)
    assert (workdir / "eval/reconstruction/abandoned/step_30").is_dir()
    assert (workdir / "eval/reconstruction/step_30/metrics.json").is_file()
    # A number that is not the run's is no step of it.
    (workdir / "checkpoints" / "100000").mkdir()
    rc, out = finish(again(workdir, "--task=rollback", "--step=25"))
    assert rc == 64 and out.rstrip().endswith(": 30, 20"), out


def test_a_roll_back_that_is_killed_can_be_repeated(reference, tmp_path, monkeypatch, capsys):
    whole, halved = (copy(reference, tmp_path / name) for name in ("whole", "halved"))
    rollback.run(whole, 20)
    for place in ("set_aside_after", "last_logged"):
        with monkeypatch.context() as patch:
            patch.setattr(rollback, place, lambda *a, **k: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                rollback.run(halved, 20)
    rollback.run(halved, 20)
    assert "goes on from step 20; the batches of steps 21 to 30" in capsys.readouterr().out
    assert read_run(halved).offsets == read_run(whole).offsets == ((20, 10),)
    listings = [sorted(p.name for p in d.rglob("abandoned/*")) for d in (whole, halved)]
    assert listings[0] == listings[1] and "final.json" in listings[0]


def test_after_an_allowed_change_nothing_stale_is_kept(shards, reference, tmp_path):
    workdir = rewind(reference, tmp_path / "run")
    old = (workdir / "eval/reconstruction/step_30/metrics.json").read_text()
    argv = [*command(shards, workdir, THIRTY), "--config.optim.blr=0.01"]
    killed([*argv, "--allow_config_change"], "read back", tmp_path)
    # Killed before its next checkpoint was known to be good; no flag is needed any more.
    (workdir / "checkpoints" / "30" / "digest" / "metadata").unlink()
    rc, out = finish(argv)
    assert rc == 0 and "resumed at step 20" in out, out
    assert (workdir / "eval/reconstruction/step_30/metrics.json").read_text() != old
    aside = workdir / "eval/reconstruction/abandoned/step_30/metrics.json"
    assert aside.read_text() == old
    # Without config.json there is no telling what was changed: that is no permission.
    (workdir / "config.json").unlink()
    rc, out = finish([*argv, "--config.seed=5"])
    assert rc == 64 and "config.json, which is missing or was edited" in out, out


def test_a_run_that_has_lost_its_checkpoints_is_no_new_run(reference, tmp_path):
    # By a relative path, which is a run directory like any other.
    workdir = copy(reference, tmp_path / "run")
    relative = os.path.relpath(workdir, ROOT)
    rc, out = finish(again(relative, "--task=verify"))
    assert rc == 0 and out.count("verified") == 2, out
    rc, out = finish(again(relative))
    assert rc == 0 and "resumed at step 30" in out, out
    shutil.rmtree(workdir / "checkpoints")
    rc, out = finish(again(relative))
    assert rc == 74 and "its log knows step 30; --allow_fresh" in out, out
    (workdir / "run.json").unlink()
    rc, out = finish(again(relative, "--task=verify"))
    assert rc == 74 and "run.json is missing" in out, out


KILLER = """
import os, shutil, signal, sys
from pathlib import Path
where = sys.argv.pop(1)

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

import xmae_jax.checkpoint as c
if where == "save":  # arrays are on disk, the step has not got its name
    from orbax.checkpoint._src.path import atomicity
    for kind in vars(atomicity).values():
        if isinstance(kind, type) and "finalize" in vars(kind):
            kind.finalize = die
elif where == "restore":
    c._read = die
elif where == "read back":
    c.read_back = die
elif where == "evaluation":
    import xmae_jax.train
    xmae_jax.train._Looker._evaluate = die
elif where == "removal":
    def half(path, *args, **kwargs):
        next(p for p in Path(path).rglob("*") if p.is_file()).unlink()
        die()
    c.shutil.rmtree = half
from xmae_jax import main
sys.exit(main.main(["main", *sys.argv[1:]]))
"""


def killed(argv, where, tmp_path):
    """Run a command that kills itself at a certain place."""
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    rc, out = finish([sys.executable, str(script), where, *argv[3:]], PYTHONPATH=str(ROOT))
    assert rc == -signal.SIGKILL, out


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("removal"),
        pytest.param("save", marks=pytest.mark.slow),
        pytest.param("read back", marks=pytest.mark.slow),
        pytest.param("restore", marks=pytest.mark.slow),
    ],
)
def test_killed_inside(shards, reference, tmp_path, where):
    argv = command(shards, tmp_path / "run", THIRTY, "--config.checkpoint_every=10")
    folder = tmp_path / "run" / "checkpoints"
    if where == "restore":
        rewind(reference, tmp_path / "run")
    killed(argv, where, tmp_path)
    names = {p.name for p in folder.iterdir()}
    if where == "save":  # the very first
        assert names == {"10.orbax-checkpoint-tmp"}
    elif where == "removal":  # of step 10, once step 30 has been read back
        assert names == {"10.removing", "20", "30"}
    elif where == "read back":
        assert names == {"10"}
    rc, out = finish(argv)
    assert rc == 0, out
    assert_same_run(tmp_path / "run", reference, steps=30, interval=31 if where == "save" else 11)
    assert {p.name for p in folder.iterdir()} == {"20", "30"}


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 24 MB; root may."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk])
    if made.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("filler", ["checkpoints", "log"])
def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(
    shards, tmp_path, small_disk, filler
):  # fmt: skip
    # A model of which several checkpoints fit.
    narrow = [f"--config.objective.{part}.width=24" for part in ("encoder", "decoder")]
    rc, out = finish(command(shards, tmp_path / "run", THIRTY, *narrow))
    assert rc == 0, out
    argv = command(shards, small_disk / "run", THIRTY, *narrow)
    process = start(argv)
    for text in process.stdout:
        if text.startswith("step 15/30"):
            break
    process.send_signal(signal.SIGSTOP)
    with (small_disk / "filler").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        if filler == "checkpoints":  # the log still has room, a checkpoint has not
            file.truncate(file.tell() - 100_000)
    process.send_signal(signal.SIGCONT)
    out = process.stdout.read()
    assert process.wait() == 74, out
    assert (
        "bytes are free" in out and len(out.splitlines()) < 60 and str(small_disk / "run") in out
    ), out
    assert "Traceback" not in out
    rc, report = finish(again(small_disk / "run", "--task=verify"))
    assert rc == 0 and '"step": 10' in report, report
    (small_disk / "filler").unlink()
    rc, out = finish(argv)
    assert rc == 0 and "resumed at step" in out, out
    assert_same_run(small_disk / "run", tmp_path / "run", steps=30, interval=21)


# Losses.


def test_a_step_that_is_not_finite_is_put_on_record(shards, reference, tmp_path):
    argv = command(shards, tmp_path, THIRTY, "--config.debug.poison_step=7:nan")
    rc, out = finish(argv)
    assert rc == 0, out
    (event,) = lines(tmp_path, "event")
    assert (event["event"], event["step"]) == ("nonfinite", 7)
    assert event["cause"] == "loss term reconstruction is not finite"
    want, got = lines(reference), lines(tmp_path)
    assert [line["skipped"] for line in got] == [0] * 6 + [1] * 24
    assert [key(line) for line in got[:6]] == [key(line) for line in want[:6]]
    assert got[6]["training_loss"] is None and got[6]["batch_digest"] == want[6]["batch_digest"]
    # The batch is kept as the step saw it, with whose it is.
    folder = tmp_path / event["debug"]
    kept = np.load(folder / "batch.npz")
    rows = list(csv.DictReader((folder / "rows.csv").open()))
    records = Records(shards, "train")
    assert [row["id"] for row in rows] == [records[i]["id"] for _, i in kept["id"].tolist()]
    assert event["records"] == [row["id"] for row in rows]
    assert rows[0]["where"] == records.where(int(rows[0]["index"]))
    assert kept["image"].shape == (8, 64, 64, 1) and kept["image"].dtype == np.uint8
    assert (folder / "thumbnails.png").stat().st_size > 1000


def test_what_is_saved_is_on_record_before(shards, tmp_path):
    poison = ["--config.debug.poison_step=10:nan", "--config.eval_every=10"]
    killed(command(shards, tmp_path / "run", THIRTY, *poison), "evaluation", tmp_path)
    (event,) = lines(tmp_path / "run", "event")
    assert (event["event"], event["step"]) == ("nonfinite", 10)
    assert {p.name for p in (tmp_path / "run/debug").iterdir()} == {"step_10"}


def test_a_run_that_diverges_at_its_end_is_not_done(shards, tmp_path):
    poison = ["--config.debug.poison_step=3-12:nan", "--config.total_steps=12"]
    for _ in range(2):
        rc, out = finish(command(shards, tmp_path, *poison))
        assert rc == 70 and "up to step 12" in out, out
    assert not (tmp_path / "final.json").exists()


def test_ten_skipped_steps_in_a_row_end_a_run(shards, reference, tmp_path):
    poison = "--config.debug.poison_step=14-90:inf"
    argv = command(shards, tmp_path, THIRTY, poison)
    rc, out = finish(argv)
    assert rc == 70 and "10 steps in a row were skipped, up to step 23" in out, out
    assert len(lines(tmp_path, "event")) == 10
    rc, out = finish(again(tmp_path, "--task=verify"))
    assert rc == 0, out
    # Without the poison it goes on from its last checkpoint as if nothing had been.
    clean = [a for a in argv if a != poison]
    rc, out = finish(clean)
    assert rc == 64 and "poison_step" in out, out
    rc, out = finish([*again(tmp_path, "--task=rollback"), "--step=10"])
    assert rc == 0 and re.search("steps 11 to 2[34] are passed over", out), out
    rc, out = finish([*clean, "--allow_config_change"])
    assert rc == 0 and "resumed at step 10" in out, out
    assert (tmp_path / "final.json").is_file()


# Data.


def damaged_copy(shards, target, *, record):
    """Copy shards and damage one record, behind the part that is looked at when a run starts."""
    copy(shards, target)
    records = Records(target, "train")
    where, _, position = records.where(record).partition(", record ")
    path = target / where
    content = bytearray(path.read_bytes())
    image = records[record]["image"]
    at = content.index(image) + len(image) // 2
    content[at] ^= 1
    path.write_bytes(content)
    return f"{where}", position


def shard_record(shards):
    """Pick a training record that lies behind the first 64 KiB of its shard."""
    records = Records(shards, "train")
    for index in reversed(range(len(records))):
        name = records.where(index).partition(",")[0]
        content = (Path(shards) / name).read_bytes()
        image = records[index]["image"]
        if content.index(image) + len(image) // 2 > 65536:
            return index
    raise AssertionError("shards are too small")


def test_a_damaged_record_ends_a_run_or_is_left_out(shards, tmp_path):
    where, position = damaged_copy(shards, tmp_path / "shards", record=shard_record(shards))
    data = tmp_path / "shards"
    rc, out = finish(command(data, tmp_path / "a", "--config.total_steps=12"))
    assert rc == 65 and where in out and f"record {position}" in out, out
    assert "Traceback" not in out

    # Every film is evaluated too, the damaged one left out there as well.
    skip = ["--config.data.bad_records=skip", "--config.total_steps=12", "--config.eval_rows=40"]
    rc, out = finish(command(data, tmp_path / "b", *skip))
    assert rc == 65 and "are allowed" in out and "max_bad_share" in out, out

    skip += ["--config.data.max_bad_share=0.1"]
    whole = command(data, tmp_path / "c", *skip)
    rc, out = finish(whole)
    assert rc == 0, out
    events = lines(tmp_path / "c", "event")
    assert events and {e["event"] for e in events} == {"bad_record"}
    assert all(set(e["where"]) == {f"{where}, record {position}"} for e in events)
    counts = np.cumsum([len(e["where"]) for e in events])
    assert [e["rows"] for e in events] == counts.tolist()
    # Killed and resumed, the count goes on.
    workdir = copy(tmp_path / "c", tmp_path / "d")
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "final.json").unlink()
    rc, out = finish(again(workdir))
    assert rc == 0 and "resumed at step 10" in out, out
    final = [(tmp_path / name / "final.json").read_text() for name in "cd"]
    assert final[0] == final[1]


# One owner.


def test_a_second_run_is_refused_and_touches_nothing(shards, reference, tmp_path):
    argv = command(shards, tmp_path / "run", "--config.total_steps=3000")
    first = start(argv)
    for text in first.stdout:
        if text.startswith("step  "):
            break
    first.send_signal(signal.SIGSTOP)  # so that what changes is not its doing
    time.sleep(0.2)
    before = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "run").rglob("*"))}
    began = time.monotonic()
    rc, out = finish(argv)
    took = time.monotonic() - began
    assert rc == 73 and str(first.pid) in out and os.uname().nodename in out, out
    assert "since 20" in out
    assert before == {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "run").rglob("*"))}
    # Five seconds on an idle machine; the tests share theirs.
    assert took < 15, took
    first.kill()
    first.wait()
    process = start(argv)
    for text in process.stdout:
        if text.startswith("step "):
            process.send_signal(signal.SIGTERM)
            break
    assert process.communicate()[0] is not None and process.returncode == 75
    assert not (tmp_path / "run" / "lock").exists()


# Hangs and leaks.


def test_the_watchdog_ends_what_stands_still(tmp_path):
    """Even where the disk that it would write to hangs: a pipe that nobody reads."""
    program = """
import sys, time
from pathlib import Path
from xmae_jax.clock import Clock
report = Path(sys.argv[1])
with Clock(batch_size=1, total_steps=1, mfu_of_speed=None, patience=1.0, report=report) as clock:
    for _ in range(4):
        clock.alive("step")
        time.sleep(0.5)
    print("alive", flush=True)
    with clock.time("data"):
        time.sleep(60)
"""
    os.mkfifo(tmp_path / "pipe")
    for report in (tmp_path / "debug" / "stalled.txt", tmp_path / "pipe"):
        out = subprocess.run(
            [sys.executable, "-c", program, str(report)], cwd=ROOT, capture_output=True, text=True
        )
        assert out.returncode == 134 and out.stdout == "alive\n"
        assert "no sign of life for 1 s, in: data" in out.stderr and "line 11" in out.stderr
    assert "Thread 0x" in (tmp_path / "debug" / "stalled.txt").read_text()


@pytest.mark.slow
def test_a_run_that_stands_still_is_ended(shards, tmp_path):
    """A loader process that is stopped answers no more, and does not die either."""
    argv = command(shards, tmp_path, "--config.total_steps=3000", "--config.data.workers=1")
    process = start([*argv, "--config.guard.watchdog_seconds=60"])
    text = []
    for line in process.stdout:
        text.append(line)
        if line.startswith("step    3/"):
            break
    for child in children(process.pid):
        os.kill(child, signal.SIGSTOP)
    out = "".join(text) + process.stdout.read()
    assert process.wait() == 134, out
    assert "no sign of life for 60 s, in: data" in out
    assert 'File "' in out and "in _train" in out  # the stacks
    assert "in _train" in (tmp_path / "debug" / "stalled.txt").read_text()
    wait_until_gone(process.pid)


def test_a_killed_loader_process_ends_a_run(shards, tmp_path):
    argv = command(shards, tmp_path, "--config.total_steps=3000", "--config.data.workers=2")
    process = start(argv)
    for line in process.stdout:
        if line.startswith("step    3/"):
            break
    workers = children(process.pid)
    shared = shared_memory([process.pid, *workers])
    assert len(workers) == 2 and shared
    os.kill(max(workers), signal.SIGKILL)
    out = process.stdout.read()
    assert process.wait() == 74 and "a loader process died" in out, out
    assert "Traceback" not in out
    assert not [name for name in shared if Path(name).exists()]
    wait_until_gone(process.pid)


def shared_memory(pids):
    """List the shared memory that processes have open or mapped."""
    maps = "\n".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    return set(re.findall(r"/dev/shm/\S+", maps))


def children(pid):
    """List loader processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
            line = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid and "spawn_main" in line:
            found.append(int(stat.parent.name))
    return found


def wait_until_gone(pid, seconds=10):
    for _ in range(10 * seconds):
        if not children(pid):
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {children(pid)}")


@pytest.mark.slow
def test_two_thousand_steps_leak_nothing(shards, tmp_path):
    argv = command(
        shards, tmp_path, "--config.total_steps=2000", "--config.checkpoint_every=40",
        "--config.eval_every=100", "--config.log_every=10",
    )  # fmt: skip
    process = start(argv)
    seen = {}

    def note(text):
        if text.startswith("step "):
            step = int(text.split()[1].partition("/")[0])
            status = Path(f"/proc/{process.pid}/status").read_text()
            number = {"VmRSS": int(status.partition("VmRSS:")[2].split()[0])}
            names = []
            for path in Path(f"/proc/{process.pid}/task").glob("*/comm"):
                with contextlib.suppress(OSError):  # a thread that has just ended
                    names.append(path.read_text())
            # TensorStore's pool grows with the load of the machine, up to a limit of its own.
            number["threads"] = sum("ts_pool" not in name for name in names)
            number["fds"] = len(os.listdir(f"/proc/{process.pid}/fd"))
            seen[step] = number

    out = []
    for text in process.stdout:
        out.append(text)
        note(text)
    assert process.wait() == 0, "".join(out)[-3000:]
    assert len(list((tmp_path / "eval/reconstruction").iterdir())) == 20
    for name in ("VmRSS", "threads", "fds"):
        # Medians, since a save holds a copy of the state for a step or two.
        early = np.median([seen[step][name] for step in range(700, 1000, 10)])
        late = np.median([seen[step][name] for step in range(1700, 2000, 10)])
        print(f"{name}: {early:.0f} at steps 700 to 990, {late:.0f} at steps 1700 to 1990")
        assert late <= 1.02 * early, (name, early, late)


# Determinism.


REVERSED = """
import os
listdir, scandir = os.listdir, os.scandir
os.listdir = lambda *a: sorted(listdir(*a), reverse=True)

class Reversed:
    def __init__(self, *a):
        with scandir(*a) as found:
            self._found = iter(sorted(found, key=lambda e: e.name, reverse=True))
    def __enter__(self): return self
    def __exit__(self, *a): pass
    def __iter__(self): return self
    def __next__(self): return next(self._found)
    def close(self): pass

os.scandir = Reversed
"""


@pytest.mark.slow
@pytest.mark.parametrize("clock", [None, "2031-05-01 12:00:00", "2019-03-31 01:59:50"])
def test_surroundings_change_no_number(shards, reference, tmp_path, clock):
    """Another hash seed, directory, locale, order of listings, number of threads and date."""
    if clock and not shutil.which("faketime"):
        pytest.skip("faketime is not installed")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(REVERSED)
    argv = command(shards, tmp_path / "run", THIRTY)
    argv[3] = f"--config={ROOT}/configs/quickstart.py:smoke"
    env = os.environ | {
        "XLA_FLAGS": "",
        "PYTHONHASHSEED": "12345",
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Asia/Kathmandu",
        "PYTHONPATH": f"{tmp_path}/site:{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    argv = (["faketime", clock] if clock else []) + argv + ["--config.data.threads=1"]
    out = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    times = {"img_per_sec", "t_data", "t_step", "t_ckpt"}
    for kind in ("train", "eval", "event"):
        got, want = (
            [{k: v for k, v in line.items() if k not in times} for line in lines(run, kind)]
            for run in (tmp_path / "run", reference)
        )
        assert got == want
    for name in ("final.json", "eval/reconstruction/step_30/predictions.csv"):
        assert (tmp_path / "run" / name).read_text() == (reference / name).read_text()
