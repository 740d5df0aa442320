"""Starting runs as users do, and reading what they leave."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
OVERRIDES = (
    "--config.image_size=64",
    "--config.objective.mask.keep=5",
    "--config.batch_size=8",
    "--config.eval_rows=4",
)


def command(shards, workdir, *overrides):
    return [
        sys.executable, "-m", "xmae_jax.main", "--config=configs/quickstart.py:smoke",
        f"--config.data.path={shards}", f"--workdir={workdir}", *OVERRIDES, *overrides,
    ]  # fmt: skip


STARTED: list[subprocess.Popen] = []
"""What a test that fails may leave running; conftest ends it."""


def start(argv, *, devices=1, **environment):
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"} | environment
    process = subprocess.Popen(
        argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    STARTED.append(process)
    return process


def start_hosts(argv, *, hosts=2, devices=2, **environment):
    """Start a command as several processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    launch = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)}
    return [
        start(argv, devices=devices, JAX_PROCESS_ID=str(i), **launch, **environment)
        for i in range(hosts)
    ]


def finish_hosts(processes):
    """Wait for several processes; return their exit codes and what they printed."""
    with ThreadPoolExecutor() as pool:
        out = list(pool.map(lambda process: process.communicate(timeout=300)[0], processes))
    return [process.returncode for process in processes], out


def lines(workdir, kind="train"):
    log = Path(workdir) / "metrics.jsonl"
    whole = log.read_text().rpartition("\n")[0].split("\n") if log.exists() else []
    parsed = [json.loads(line) for line in whole if line]
    return [line for line in parsed if line["kind"] == kind]


def key(line):
    return line["loss_hex"], line["batch_digest"]


def assert_same_run(workdir, reference, *, steps, interval):
    """Compare every logged step with the reference; return how many were replayed."""
    want = {line["step"]: key(line) for line in lines(reference)}
    assert sorted(want) == list(range(1, steps + 1))
    seen = [line["step"] for line in lines(workdir)]
    for line in lines(workdir):
        assert key(line) == want[line["step"]], line["step"]
    assert sorted(set(seen)) == sorted(want)
    assert all(later > step - interval for step, later in zip(seen, seen[1:], strict=False))
    final = [json.loads((Path(d) / "final.json").read_text()) for d in (workdir, reference)]
    assert final[0] == final[1]
    return len(seen) - len(set(seen))


def finish(argv, *, timeout=300, **options):
    """Run a command to its end; return (exit code, what it printed)."""
    process = start(argv, **options)
    out = process.communicate(timeout=timeout)[0]
    return process.returncode, out


def again(workdir, *flags):
    """Go on with what a run directory holds."""
    return [sys.executable, "-m", "xmae_jax.main", f"--workdir={workdir}", *flags]
