"""Several processes train as one: the same numbers, one way to end, and nothing lost between them.

A process of two simulated devices stands for a host; they talk over the loopback interface.
"""

import json
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.runs import again, command, finish, finish_hosts, lines, start_hosts

HEARTBEAT = 10
FLAGS = ("--config.total_steps=30", f"--config.guard.heartbeat_seconds={HEARTBEAT}")
ABORTED = (134, -signal.SIGABRT)


def hosts(argv, **options):
    return start_hosts([*argv, "--distributed"], **options)


def wait_for(process, text):
    """Read what a process prints until a line begins with `text`."""
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"ended without {text}")


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

hosts.start(10)
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
    processes = hosts(command(shards, tmp_path, *FLAGS))
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
