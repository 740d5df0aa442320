"""The loop as users run it: stop it in every way, start it again, and get the same numbers."""

import dataclasses
import json
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from tests.runs import assert_same_run, command, lines, start
from xmae_jax.rundir import read_run


def test_a_run_leaves_what_it_promises(reference):
    line = lines(reference)[0]
    names = """training_loss loss_hex loss_inside loss_outside lr l2_grads l2_params batch_digest
    skipped img_per_sec t_data t_step t_ckpt""".split()
    assert set(names) <= set(line)
    assert float.fromhex(line["loss_hex"]) == line["training_loss"]
    assert lines(reference)[-1]["training_loss"] < line["training_loss"]
    final = json.loads((reference / "final.json").read_text())
    assert final["step"] == 30
    assert "params/encoder/cls" in final["sha256"]
    assert any(name.startswith("opt_state/") for name in final["sha256"])
    metrics = json.loads((reference / "eval/reconstruction/step_30/metrics.json").read_text())
    assert {"mse_model", "mse_film_mean", "mse_mean_film", "mse_gaussian_fill"} <= set(metrics)
    assert len((reference / "eval/reconstruction/step_30/predictions.csv").open().readlines()) == 5
    assert (reference / "pictures/step_30/reconstruction.png").stat().st_size > 10_000
    assert list((reference / "tb").iterdir())
    assert {p.name for p in (reference / "checkpoints").iterdir()} == {"20", "30"}


@pytest.mark.parametrize("mesh", ["--config.mesh.fsdp=1", "--config.mesh.fsdp=2"])
def test_eight_devices_give_the_same_run(shards, reference, tmp_path, mesh):
    # 30 steps are planned and some 20 taken, so that the rate is the reference's.
    process = start(command(shards, tmp_path, "--config.total_steps=30", mesh), devices=8)
    for text in process.stdout:
        if text.startswith("step 20/30"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate()
    got, want = lines(tmp_path)[:20], lines(reference)[:20]
    assert [x["batch_digest"] for x in got] == [x["batch_digest"] for x in want]
    losses = [[line["training_loss"] for line in run] for run in (got, want)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_what_a_stop_kept_from_being_done_is_made_up_for(shards, reference, tmp_path):
    done = tmp_path / "done"
    shutil.copytree(reference, done)
    for name in ("eval", "pictures"):
        shutil.rmtree(done / name)
    process = start([*command(shards, done)[:3], f"--workdir={done}"])
    out = process.communicate()[0]
    assert process.returncode == 0, out
    for name in ("eval/reconstruction/step_30/metrics.json", "final.json"):
        assert (done / name).read_text() == (reference / name).read_text()
    assert (done / "pictures/step_30/reconstruction.png").is_file()


def test_other_data_under_the_same_path_stop_a_run(shards, reference, tmp_path):
    done = tmp_path / "done"
    shutil.copytree(reference, done)
    record = read_run(done)
    other = [{**record.sources[0], "digest": "0" * 64}]
    dataclasses.replace(record, sources=other).write()
    process = start([*command(shards, done)[:3], f"--workdir={done}"])
    out = process.communicate()[0]
    assert process.returncode == 64 and "other data" in out and "0000" in out, out


def test_a_run_starts_from_another_at_twice_its_size(shards, reference, tmp_path):
    argv = command(shards, tmp_path / "run", "--config.total_steps=2", "--config.image_size=128")
    process = start([*argv, f"--config.init_from={reference}"], devices=8)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    assert f"parameters from {reference}" in out
    wider = ["--config.objective.decoder.width=64", f"--workdir={tmp_path}/wider"]
    process = start([*argv, f"--config.init_from={reference}", *wider])
    out = process.communicate()[0]
    assert process.returncode == 64 and "decoder/norm/scale is (128,) there" in out, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_very_step(shards, reference, tmp_path, number):
    argv = command(shards, tmp_path, "--config.total_steps=30")
    process = start(argv)
    for text in process.stdout:
        if text.startswith("step  7/30"):
            process.send_signal(number)
            break
    out = process.communicate()[0]
    assert process.returncode == 75, out
    (event,) = lines(tmp_path, "event")
    assert event["event"] == "preempted"
    stopped = event["step"]
    assert 7 <= stopped < 30 and (tmp_path / "checkpoints" / str(stopped)).is_dir()
    # The same command again, or the run directory alone.
    again = argv if number == signal.SIGTERM else [*argv[:3], f"--workdir={tmp_path}"]
    process = start(again)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    assert f"resumed at step {stopped}" in out
    assert assert_same_run(tmp_path, reference, steps=30, interval=10) == 0


def test_a_signal_before_the_first_step_saves_too(shards, tmp_path):
    process = start(command(shards, tmp_path))
    for text in process.stdout:
        if text.startswith("peak rate"):
            process.send_signal(signal.SIGTERM)
            break
    out = process.communicate()[0]
    assert process.returncode == 75, out
    assert lines(tmp_path, "event")[0]["step"] <= 1


def kill_until_done(argv, workdir, *, kills, seed):
    """Start and kill -9 at random moments, then let it finish; return (kills, inside a save)."""
    draw = np.random.default_rng(seed)
    killed = saving = 0
    while killed < kills and not (workdir / "final.json").exists():
        before = len(lines(workdir))
        process = start(argv)
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        # Half at any moment from the start on, half after some steps: inside steps and saves.
        target = before + draw.integers(1, 15) if draw.random() < 0.5 else np.inf
        deadline = time.monotonic() + (draw.uniform(0, 12) if target == np.inf else 120)
        while process.poll() is None and time.monotonic() < deadline:
            if len(lines(workdir)) >= target:
                time.sleep(draw.uniform(0, 0.1))
                break
            time.sleep(0.02)
        process.kill()
        code = process.wait()
        drain.join()
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        saving += any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))
    process = start(argv)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return killed, saving


def test_kill_and_resume(shards, reference, tmp_path):
    argv = command(shards, tmp_path, "--config.total_steps=30")
    assert kill_until_done(argv, tmp_path, kills=3, seed=0)[0] >= 2
    assert_same_run(tmp_path, reference, steps=30, interval=10)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]


@pytest.mark.slow
def test_thirty_kills(shards, tmp_path):
    overrides = ("--config.total_steps=400", "--config.checkpoint_every=5")
    process = start(command(shards, tmp_path / "reference", *overrides))
    out = process.communicate()[0]
    assert process.returncode == 0, out
    workdir = tmp_path / "killed"
    killed, saving = kill_until_done(
        command(shards, workdir, *overrides), workdir, kills=30, seed=1
    )
    replayed = assert_same_run(workdir, tmp_path / "reference", steps=400, interval=5)
    resumes = len(lines(workdir, "event"))
    assert killed == 30 and saving >= 3
    print(f"{killed} kills, {saving} inside a save, {resumes} resumes, {replayed} steps replayed")
    assert not [p for p in (workdir / "checkpoints").iterdir() if "tmp" in p.name]
