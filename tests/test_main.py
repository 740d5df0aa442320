"""The command line: exit codes, and messages that name what is wrong. No device is touched."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from xmae_jax import main


def run(*argv, **environment):
    """Run main in a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "xmae_jax.main", *argv], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True,
    )  # fmt: skip


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


USAGE_ERRORS = [
    (["--config.optim.blrr=1"], ["blrr", 'Did you mean "blr"']),
    (["--config.total_steps=many"], ["total_steps", "many"]),
    (["--config.total_steps=-5"], ["total_steps must be positive"]),
    (["--config.optim.blr=nan"], ["config.optim.blr is nan"]),
    (["--config.image_size=100"], ["no multiple of encoder.patch_size"]),
    (["--nonsense=1"], ["nonsense"]),
    (["stray"], ["unexpected arguments: stray"]),
    (["--task=fly"], ["task"]),
    (["--task=evaluate"], ["leave out --config"]),
    (["--config.data.mixture=(3,)"], ["mixture"]),
    (["--config.micro_batch_size=-4"], ["micro_batch_size -4"]),
    (["--config.micro_batch_size=0"], ["micro_batch_size 0"]),
    (["--config.mesh.fsdp=3"], ["mesh.fsdp 3", "16 rows"]),
    (["--config.mesh.data=3"], ["mesh.data 3", "16 rows"]),
    (["--config.optim.freeze=('(',)"], ["no regular expression"]),
    (["--config.data.crop_scale=(1.5,3.0)"], ["crop_scale"]),
    (["--config.objective.mask.ratio_inside=1.5"], ["ratio_inside"]),
    (["--config.optim.b1=1.5"], ["b1 must lie in"]),
    (["--config.micro_batch_size=5"], ["16", "micro_batch_size 5"]),
    (["--config.guard.spike_sigma=-1"], ["spike_sigma must be positive"]),
    (["--config.data.max_bad_share=2"], ["max_bad_share"]),
    (["--config.data.bad_records=ignore"], ["'fail' or 'skip'"]),
    (["--config.debug.poison_step=soon"], ["debug.poison_step", "N:kind"]),
    (["--config.name=../../elsewhere"], ["name '../../elsewhere'"]),
    (["--config.name=a/b"], ["name 'a/b'"]),
]

FORKS = """
import io, json, os, sys
from xmae_jax import main

def answer(argv):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 2)
        sys.argv = ["main", *argv]  # ml_collections looks there as well
        os._exit(main.main(sys.argv))
    os.close(write)
    text = open(read).read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text

print(json.dumps([answer(argv) for argv in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Give main each wrong command line, in a fork of one program that has imported it."""
    folder = tmp_path_factory.mktemp("nothing")
    # There is no such platform: a device that is asked for would end this in another way. Nor is
    # there such data.
    common = ["--config=configs/quickstart.py:smoke", f"--config.data.path={folder}/nowhere",
              f"--workdir={folder}/run"]  # fmt: skip
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        input=json.dumps([[*common, *argv] for argv, _ in USAGE_ERRORS]),
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "nowhere"}, capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert not list(folder.iterdir())
    return json.loads(out.stdout)


@pytest.mark.parametrize("case", range(len(USAGE_ERRORS)), ids=lambda i: str(USAGE_ERRORS[i][0]))
def test_usage_errors_exit_64_before_anything_is_touched(answers, case):
    code, text = answers[case]
    assert code == 64, text
    for word in USAGE_ERRORS[case][1]:
        assert word in text
    assert "Traceback" not in text


def test_a_mesh_that_these_devices_do_not_make(shards, tmp_path):
    out = run(
        "--config=configs/quickstart.py:smoke", f"--config.data.path={shards}",
        f"--workdir={tmp_path}/run", "--config.mesh.fsdp=4",
        XLA_FLAGS="--xla_force_host_platform_device_count=6",
    )  # fmt: skip
    assert out.returncode == 64 and "config.mesh" in out.stderr and "6 devices" in out.stderr
    assert not (tmp_path / "run").exists()


def test_a_directory_that_holds_something_else_is_left_alone(shards, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    argv = ["--config=configs/quickstart.py:smoke", f"--config.data.path={shards}"]
    out = run(*argv, f"--workdir={tmp_path}")
    assert out.returncode == 64 and "no run directory" in out.stderr
    out = run(*argv, f"--workdir={tmp_path}/thesis.tex")
    assert out.returncode == 64 and "not a directory" in out.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--task=verify"], "needs --workdir"),
        (["--task=verify", "--workdir=/nowhere"], "--workdir=/nowhere: not there"),
        (["--task=rollback", "--workdir=."], "is no run"),
    ],
)
def test_tasks_on_runs_that_are_not_there(argv, words):
    out = run(*argv)
    assert out.returncode == 64 and words in out.stderr, out.stderr


def test_a_config_that_is_not_there():
    out = run("--config=configs/nowhere.py")
    assert out.returncode == 64 and "nowhere.py" in out.stderr


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
