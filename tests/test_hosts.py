"""Several processes train as one: the same numbers, one way to end, and nothing lost between them.

A process of two simulated devices stands for a host; they talk over the loopback interface.
"""

import json
import shlex
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.runs import again, command, finish, finish_hosts, lines, start_hosts
from tests.test_reliability import damaged_copy, shard_record
from xmae_jax import lock
from xmae_jax.data.plan import Plan
from xmae_jax.rundir import read_run

# The least, where a process is killed; elsewhere the default, since tests load the machine.
HEARTBEAT = 10
THIRTY = "--config.total_steps=30"
ABORTED = (134, -signal.SIGABRT)


def hosts(argv, **options):
    return start_hosts([*argv, "--distributed"], **options)


def wait_for(process, text):
    """Read what a process prints until a line begins with `text`; return it."""
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith(text):
            return "".join(told)
    raise AssertionError(f"ended without {text}: {''.join(told)}")


def assert_agrees(workdir, reference, *, steps):
    """Compare losses and batches with those of one process; no step may be there twice."""
    got, want = lines(workdir), lines(reference)[:steps]
    assert [line["step"] for line in got] == list(range(1, steps + 1))
    assert [line["batch_digest"] for line in got] == [line["batch_digest"] for line in want]
    losses = [np.array([line["training_loss"] for line in run]) for run in (got, want)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def assert_sound(workdir):
    """Verify every checkpoint; return their steps, newest first."""
    assert not [p for p in (workdir / "checkpoints").iterdir() if "tmp" in p.name]
    rc, out = finish(again(workdir, "--task=verify"))
    assert rc == 0, out
    return [line["step"] for line in json.loads(out)["steps"]]


AGREE = """
import sys, time
import jax, numpy as np
from xmae_jax import hosts, sharding

hosts.start(10, 300)
me = hosts.own()
assert hosts.from_first(lambda: [me, "first"]) == [0, "first"]
assert hosts.from_all({"me": me}) == [{"me": 0}, {"me": 1}]
assert hosts.together(lambda: me, ValueError) == me

def fails():
    if me == 1:
        raise ValueError("on one")
try:
    hosts.together(fails, ValueError)
    raise AssertionError
except ValueError as error:
    assert str(error) == "on one"

# Devices of two hosts in turn, as a TPU's torus may have them.
devices = np.array(jax.devices())[[0, 2, 1, 3]].reshape(4, 1)
mesh = jax.sharding.Mesh(devices, ("data", "fsdp"))
rows = sharding.host_rows(mesh, 8)
assert rows.tolist() == ([0, 1, 4, 5] if me == 0 else [2, 3, 6, 7])
batch = sharding.to_global({"x": 10 * rows}, mesh, 8)["x"]
whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(batch)
assert np.asarray(whole).tolist() == list(range(0, 80, 10))
print("agreed", flush=True)
if me == int(sys.argv[1]):
    hosts.leave(65, "bad data")
hosts.from_all(None)  # which never comes
"""


@pytest.mark.parametrize("fails", [0, 1])
def test_processes_agree_and_end_with_one_code(tmp_path, fails):
    (tmp_path / "agree.py").write_text(AGREE)
    argv = [sys.executable, str(tmp_path / "agree.py"), str(fails)]
    codes, out = finish_hosts(start_hosts(argv, PYTHONPATH=str(ROOT)))
    assert codes == [65, 65], out
    assert all("agreed" in text for text in out), out
    assert f"process {fails} has ended the run with 65: bad data" in out[1 - fails]


def test_asked_to_stop_both_save_one_step_and_one_process_goes_on(shards, reference, tmp_path):
    processes = hosts(command(shards, tmp_path, THIRTY))
    wait_for(processes[0], "step 12/30")
    processes[1].send_signal(signal.SIGTERM)
    time.sleep(2)
    for process in processes:  # once more while it saves
        process.send_signal(signal.SIGTERM)
    codes, out = finish_hosts(processes)
    assert codes == [75, 75], out
    (event,) = lines(tmp_path, "event")
    stopped = event["step"]
    assert event["event"] == "preempted" and 12 < stopped < 30
    assert assert_sound(tmp_path) == [stopped, 10]
    assert_agrees(tmp_path, reference, steps=stopped)

    rc, text = finish(again(tmp_path))
    assert rc == 0 and f"resumed at step {stopped}" in text, text
    assert_agrees(tmp_path, reference, steps=30)


@pytest.mark.parametrize("victim", [0, 1])
def test_who_waits_for_a_killed_process_is_ended(tmp_path, victim):
    (tmp_path / "agree.py").write_text(AGREE)
    argv = [sys.executable, str(tmp_path / "agree.py"), "2"]  # nobody fails
    processes = start_hosts(argv, PYTHONPATH=str(ROOT))
    for process in processes:
        wait_for(process, "agreed")
    processes[victim].kill()
    took = survived(processes, victim)
    assert took < HEARTBEAT + 10, took


def survived(processes, victim):
    """Return how many seconds a process lives on after the death of the other."""
    processes[victim].wait()
    began = time.monotonic()
    codes, out = finish_hosts(processes)
    took = time.monotonic() - began
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in ABORTED, out
    print(f"process {victim} killed: the other ended {took:.1f} s later with {codes[1 - victim]}")
    return took


DYING = """
import os, signal, sys
victim, where = sys.argv.pop(1).split()

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["JAX_PROCESS_ID"] == victim:
    import xmae_jax.checkpoint as c
    from orbax.checkpoint._src.path import atomicity
    save = c.Checkpoints.save

    def dying(self, step, state):
        if step == 20 and where == "committing":  # arrays are on disk, the step has no name yet
            for kind in vars(atomicity).values():
                if isinstance(kind, type) and "finalize" in vars(kind):
                    kind.finalize = die
        elif step == 20 and where == "reading":
            c.read_back = die
        save(self, step, state)
        if step == 20 and where == "writing":
            die()

    c.Checkpoints.save = dying

from xmae_jax import main
sys.exit(main.main(["main", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["0 step", "1 step", "0 writing", "1 writing", "0 committing", "0 reading"]
)
def test_one_is_killed(shards, reference, tmp_path, where):
    workdir, script = tmp_path / "run", tmp_path / "dying.py"
    script.write_text(DYING)
    argv = command(shards, workdir, THIRTY, f"--config.guard.heartbeat_seconds={HEARTBEAT}")
    dying = [sys.executable, str(script), where, *argv[3:]]
    processes = hosts(dying, PYTHONPATH=str(ROOT))
    victim = int(where[0])
    if where.endswith("step"):
        wait_for(processes[0], "step 23/30")
        processes[victim].kill()
    assert survived(processes, victim) < HEARTBEAT + 10
    steps = {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
    whole = where.endswith(("step", "reading"))
    assert steps == ({"10", "20"} if whole else {"10"})

    # From there with both, and with one alone.
    alone = shutil.copytree(workdir, tmp_path / "alone")
    rc, out = finish(again(alone))
    assert rc == 0 and f"resumed at step {20 if whole else 10}" in out, out
    codes, told = finish_hosts(hosts(argv))
    assert codes == [0, 0] and f"resumed at step {20 if whole else 10}" in told[0], told
    for run in (workdir, alone):
        assert assert_sound(run) == [30, 20]
        seen = {line["step"]: line for line in lines(run)}
        for line in lines(reference):
            twin = seen.pop(line["step"])
            assert twin["batch_digest"] == line["batch_digest"]
            assert twin["training_loss"] == pytest.approx(line["training_loss"], rel=1e-5)
        assert not seen


def test_a_wrong_start_is_told_by_all(shards, tmp_path):
    rc, out = finish([*command(shards, tmp_path), "--distributed"])
    assert rc == 64 and "set JAX_COORDINATOR_ADDRESS" in out, out
    with lock.acquire(tmp_path):
        codes, out = finish_hosts(hosts(command(shards, tmp_path)))
    assert codes == [73, 73] and "is in use by process" in out[1], out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differs", "told"),
    [
        ("--config.seed=$JAX_PROCESS_ID", "another config than process 0"),
        ("--workdir={}/$JAX_PROCESS_ID", "a file system that all hosts share"),
    ],
)
def test_processes_that_were_started_otherwise_are_refused(shards, tmp_path, differs, told):
    argv = shlex.join([*command(shards, tmp_path / "run"), "--distributed"])
    codes, out = finish_hosts(start_hosts(["bash", "-c", f"{argv} {differs.format(tmp_path)}"]))
    assert codes == [64, 64] and told in out[0] and told in out[1], out


@pytest.mark.slow
def test_interrupted_in_an_evaluation_both_stop_and_make_up_for_it(shards, reference, tmp_path):
    # Every film is looked at, so that it takes a while.
    argv = command(shards, tmp_path, THIRTY, "--config.eval_every=10", "--config.eval_rows=40")
    processes = hosts(argv)
    wait_for(processes[0], "step 10/30")
    for process in processes:
        process.send_signal(signal.SIGINT)
    codes, out = finish_hosts(processes)
    assert codes == [75, 75], out
    assert [e["step"] for e in lines(tmp_path, "event")] == [10]
    assert not lines(tmp_path, "eval") and assert_sound(tmp_path) == [10]
    codes, out = finish_hosts(hosts(argv))
    assert codes == [0, 0] and "resumed at step 10" in out[0], out
    assert [line["step"] for line in lines(tmp_path, "eval")] == [10, 20, 30]
    assert_agrees(tmp_path, reference, steps=30)


def stopped(processes, text):
    """Stop hosts after a step; return what the first of them printed."""
    told = wait_for(processes[0], text)
    processes[-1].send_signal(signal.SIGTERM)
    codes, out = finish_hosts(processes)
    assert set(codes) == {75}, out
    return told + out[0]


@pytest.mark.slow
def test_a_state_goes_from_one_layout_of_hosts_to_another(shards, reference, tmp_path):
    """Parameters are split over all devices, so that no host holds them."""
    argv = command(shards, tmp_path, THIRTY, "--config.mesh.fsdp=4")
    stopped(hosts(argv), "step  4/30")
    assert "resumed at step" in stopped(start_hosts(argv, hosts=1, devices=4), "step  9/30")
    # One device, then four processes of one; on the way back the newest step is damaged.
    one = [*argv, "--config.mesh.fsdp=1", "--allow_config_change"]
    assert "resumed at step" in stopped(start_hosts(one, hosts=1, devices=1), "step 14/30")
    four = [*argv, "--allow_config_change", "--distributed"]
    assert "resumed at step" in stopped(start_hosts(four, hosts=4, devices=1), "step 19/30")
    newest, before = assert_sound(tmp_path)
    for data in (tmp_path / f"checkpoints/{newest}/state").rglob("d/*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 16
        data.write_bytes(content)
    codes, out = finish_hosts(hosts(argv))
    assert codes == [0, 0], out
    assert f"checkpoint {newest}: " in out[0] and f"resumed at step {before}" in out[0]
    seen = {line["step"]: line for line in lines(tmp_path)}
    want = [line["training_loss"] for line in lines(reference)]
    np.testing.assert_allclose([seen[i]["training_loss"] for i in range(1, 31)], want, rtol=1e-5)


@pytest.mark.slow
def test_bad_data_that_one_host_meets_ends_both_or_is_left_out(shards, tmp_path):
    where, position = damaged_copy(shards, tmp_path / "shards", record=shard_record(shards))
    few = ["--config.total_steps=12"]
    argv = command(tmp_path / "shards", tmp_path / "a", *few)
    codes, out = finish_hosts(hosts(argv))
    assert codes == [65, 65], out
    assert all(where in text and f"record {position}" in text for text in out)
    assert sum("has ended the run with 65" in text for text in out) == 1

    few += ["--config.data.bad_records=skip", "--config.data.max_bad_share=0.1"]
    rc, out = finish(command(tmp_path / "shards", tmp_path / "one", *few))
    assert rc == 0, out
    codes, out = finish_hosts(hosts(command(tmp_path / "shards", tmp_path / "two", *few)))
    assert codes == [0, 0], out
    assert lines(tmp_path / "two", "event") == lines(tmp_path / "one", "event") != []


@pytest.mark.slow
def test_hosts_that_diverge_end_together(shards, tmp_path):
    poison = "--config.debug.poison_step=3-20:nan"
    codes, out = finish_hosts(hosts(command(shards, tmp_path, THIRTY, poison)))
    assert codes == [70, 70] and "up to step 12" in out[0], out
    assert [line["step"] for line in lines(tmp_path, "event")] == list(range(3, 13))
    (source,) = read_run(tmp_path).sources
    plan = Plan(0, (source["records"],), (8,), (source["digest"],))
    for step in range(3, 13):
        parts = [np.load(tmp_path / f"debug/step_{step}{end}/batch.npz") for end in ("", ".1")]
        ids = np.concatenate([part["id"] for part in parts])
        np.testing.assert_array_equal(ids, plan.ids(step - 1))
    assert assert_sound(tmp_path) == [10]
