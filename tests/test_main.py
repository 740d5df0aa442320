"""The command line: exit codes, and messages that name what is wrong. No device is touched."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from xmae_jax import main


def run(*argv, cwd=ROOT):
    """Run main in a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "xmae_jax.main", *argv], cwd=cwd, capture_output=True, text=True
    )


def test_without_data_it_prints_the_two_commands():
    out = run("--config=configs/pretrain_1280.py:smoke")
    assert out.returncode == 64
    assert "python -m data_prep.phantoms" in out.stderr and "data_prep.build" in out.stderr
    assert "Traceback" not in out.stderr
    assert not (ROOT / "runs" / "pretrain_1280_smoke").exists()


def test_no_config_at_all(tmp_path):
    out = run(f"--workdir={tmp_path}/nothing")
    assert out.returncode == 64 and "config.json is not there" in out.stderr
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config.optim.blrr=1"], ["blrr", 'Did you mean "blr"']),
        (["--config.total_steps=many"], ["total_steps", "many"]),
        (["--config.total_steps=-5"], ["total_steps must be positive"]),
        (["--config.optim.blr=nan"], ["config.optim.blr is nan"]),
        (["--config.image_size=100"], ["no multiple of encoder.patch_size"]),
        (["--nonsense=1"], ["nonsense"]),
        (["stray"], ["unexpected arguments: stray"]),
        (["--task=fly"], ["task"]),
        (["--config.data.mixture=(3,)"], ["mixture"]),
        (["--config.micro_batch_size=-4"], ["micro_batch_size -4"]),
        (["--config.micro_batch_size=0"], ["micro_batch_size 0"]),
        (["--config.mesh.fsdp=3"], ["config.mesh", "3"]),
        (["--config.optim.freeze=('(',)"], ["no regular expression"]),
        (["--config.data.crop_scale=(1.5,3.0)"], ["crop_scale"]),
        (["--config.objective.mask.ratio_inside=1.5"], ["ratio_inside"]),
        (["--config.optim.b1=1.5"], ["b1 must lie in"]),
    ],
)
def test_usage_errors_exit_64(shards, tmp_path, argv, words):
    out = run(
        "--config=configs/quickstart.py:smoke", f"--config.data.path={shards}",
        f"--workdir={tmp_path}/run", *argv,
    )  # fmt: skip
    assert out.returncode == 64, out.stderr
    for word in words:
        assert word in out.stderr
    assert "Traceback" not in out.stderr


def test_a_config_that_is_not_there():
    out = run("--config=configs/nowhere.py")
    assert out.returncode == 64 and "nowhere.py" in out.stderr


def test_a_refused_config_leaves_no_trace(shards, tmp_path):
    out = run("--config=configs/quickstart.py:smoke", f"--config.data.path={shards}",
              f"--workdir={tmp_path}/run", "--config.image_size=100")  # fmt: skip
    assert out.returncode == 64 and not (tmp_path / "run").exists()


def test_evaluation_can_be_left_out(shards, tmp_path):
    # "None" on the command line means None; the run is refused for another key, later.
    out = run("--config=configs/quickstart.py:smoke", f"--config.data.path={shards}",
              f"--workdir={tmp_path}/run", "--config.data.eval_split=None",
              "--config.data.mixture=(3,)")  # fmt: skip
    assert out.returncode == 64 and "mixture" in out.stderr and "split" not in out.stderr


def test_help_is_answered():
    out = run("--help")
    assert out.returncode == 0 and "--workdir" in out.stdout and "Exit codes" in out.stdout


def test_bad_data_exits_65(shards, tmp_path):
    out = run("--config=configs/quickstart.py:smoke", f"--config.data.path={tmp_path}",
              f"--workdir={tmp_path}/run")  # fmt: skip
    assert out.returncode == 65 and "manifest.json" in out.stderr
    out = run("--config=configs/quickstart.py:smoke", f"--config.data.path={shards}",
              "--config.data.eval_split=nope", f"--workdir={tmp_path}/other")  # fmt: skip
    assert out.returncode == 64 and "None trains without" in out.stderr
    assert "nope" in out.stderr and "val" in out.stderr
    assert "Traceback" not in out.stderr


def test_a_changed_config_stops_unless_allowed(shards, tmp_path):
    config = json.loads((ROOT / "tests/golden/config_quickstart_smoke.json").read_text())
    config["data"]["path"] = str(shards)
    config["seed"] = 7
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    (tmp_path / "config.json").write_text(text)
    out = run("--config=configs/quickstart.py:smoke", f"--config.data.path={shards}",
              f"--workdir={tmp_path}")  # fmt: skip
    assert out.returncode == 64
    assert "config.seed: 7 in the run directory, 0 now" in out.stderr, out.stderr
    assert (tmp_path / "config.json").read_text() == text


def test_a_run_directory_is_data(tmp_path):
    (tmp_path / "config.json").write_text('__import__("os").system("touch PWNED")')
    out = run(f"--workdir={tmp_path}")
    assert out.returncode == 64 and "config.json" in out.stderr
    assert not list(ROOT.glob("PWNED")) and not list(tmp_path.glob("PWNED"))


def test_flags_are_found_before_absl_parses():
    argv = ["--config=a.py:smoke", "--workdir", "here", "--config.seed=3"]
    assert main._flag(argv, "config") == "a.py:smoke"
    assert main._flag(argv, "workdir") == "here"
    assert main._flag(argv, "task") is None
