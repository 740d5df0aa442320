"""The one command line: `python -m xmae_jax.main --config=configs/X.py --workdir=DIR`.

A config file is code and is run; anything read from a run directory is data. Exit codes: 0 done,
64 bad config or usage, 65 bad data, 70 diverged, 73 the run directory is in use, 74 disk, I/O or no
usable checkpoint, 75 preempted and saved (start me again), 134 hung and ended by the watchdog, or
another process of the run is gone. With --distributed all processes end with one code.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging as python_logging
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from xmae_jax import config as config_lib
from xmae_jax import hosts
from xmae_jax.config import ConfigError
from xmae_jax.data.leaks import Leaked
from xmae_jax.data.records import DataError
from xmae_jax.incidents import Diverged
from xmae_jax.lock import Locked
from xmae_jax.scores.predictions import PredictionsError
from xmae_jax.tasks import evaluate, export, knn, plan, predict, rollback, train, verify
from xmae_jax.train import Preempted

EXIT_CODES = {
    ConfigError: 64,
    DataError: 65,
    PredictionsError: 65,
    predict.NoFilm: 65,
    Diverged: 70,
    Locked: 73,
    OSError: 74,
    Preempted: 75,
}

# Every collective of every simulated CPU device blocks a thread; with one thread a core, eight
# devices on two cores wait for each other for ever.
if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    os.environ.setdefault("PJRT_NPROC", "64")
# Grain frees the shared memory of its processes in a thread, which the end of a run may overtake;
# Python's tracker then frees it, and would say so.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "task",
    "train",
    ["train", "plan", "evaluate", "predict", "export", "verify", "rollback"],
    "train: train, or go on. plan: what the config needs on given chips. evaluate: score the"
    " findings of a run. predict: tell the findings of FILE..., or write their reports, and show"
    " where the model looked. export: write the model for other code. verify: check every"
    " checkpoint. rollback: go back to --step.",
)
flags.DEFINE_string("workdir", None, "Run directory; default runs/<config name>.")
flags.DEFINE_bool(
    "allow_config_change", False, "Go on in a run directory although its config was another."
)
flags.DEFINE_bool(
    "allow_fresh", False, "Start anew where there are checkpoints and none can be used."
)
flags.DEFINE_integer("step", None, "Checkpoint for --task=rollback.")
flags.DEFINE_string("split", None, "Split to evaluate; default val and test, if there.")
flags.DEFINE_string("predictions", None, "File to evaluate instead of a run: a predictions.csv.")
flags.DEFINE_string("against", None, "Run or predictions.csv to compare an evaluation with.")
flags.DEFINE_bool(
    "distributed",
    False,
    "Train together with other processes, each started by the same command: those that SLURM, a"
    " TPU pod, GKE or Open MPI started, or that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and"
    " JAX_PROCESS_ID name.",
)


def _two_arenas() -> None:
    """Keep glibc from giving each of a hundred threads a heap of its own.

    Saves then scatter what they free over all of them, and memory grows for thousands of steps
    before it stands still, at half as much again.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").mallopt(ctypes.c_int(-8), ctypes.c_int(2))  # M_ARENA_MAX


def _hush() -> None:
    """Drop the traces of reads that Orbax gives up when one beside them fails."""
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    before = sys.unraisablehook

    def hook(trouble: Any) -> None:
        if str(trouble.exc_value) != "Event loop is closed":
            before(trouble)

    sys.unraisablehook = hook


def _flag(argv: list[str], name: str) -> str | None:
    """Find one flag's value before absl parses any."""
    for i, arg in enumerate(argv):
        head, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and head == name:
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def _define_config(argv: list[str]) -> None:
    """Register --config: a file, or what the run directory saved."""
    if (given := _flag(argv, "config")) is not None:
        if not Path(given.partition(":")[0]).is_file():
            raise ConfigError(f"--config={given}: no such file; run from the repository's root")
        config_flags.DEFINE_config_file("config", None, "Config file, perhaps with :arguments.")
        return
    workdir = _flag(argv, "workdir")
    saved = Path(workdir) / "config.json" if workdir else None
    if saved is None or not saved.is_file():
        raise ConfigError(
            "give --config=configs/NAME.py, or --workdir=DIR of a run to go on with"
            + (f" ({saved} is not there)" if saved else "")
        )
    config_flags.DEFINE_config_dict("config", config_lib.from_json(saved))


def _parse(argv: list[str]) -> list[str]:
    """Read the command line, and return the files in it; every error in it is a ConfigError."""
    task = _flag(argv[1:], "task") or "train"
    of_run = task in ("evaluate", "predict", "export")
    if of_run and _flag(argv[1:], "config") is not None:
        raise ConfigError(f"--task={task} uses the config of the run: leave out --config=FILE")
    if (of_run and _flag(argv[1:], "predictions") is None) or task in ("train", "plan"):
        _define_config(argv[1:])
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        text = str(error)
        if "Traceback" in text:  # of a config file; its last line says what is wrong
            text = f"--config: {text.strip().splitlines()[-1]}"
        raise ConfigError(text) from None
    except Exception as error:  # a config file is code: anything may come out of it
        raise _config_trouble(error) from None
    if rest[1:] and task != "predict":
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1:])}")
    return rest[1:]


def _config_trouble(error: Exception) -> ConfigError:
    text = " ".join(str(error).replace("\\n", " ").replace("\\", "").split())
    return ConfigError(f"--config: {text}")


def _run(files: list[str]) -> None:
    """Run the task."""
    task = FLAGS.task
    if FLAGS.distributed and task != "train":
        raise ConfigError(f"--task={task} takes one process: leave out --distributed")
    if task == "train":
        _train(_config())
    elif task == "plan":
        plan.run(_config())
    elif task == "evaluate":
        _evaluate()
    elif task == "predict":
        predict.run(_config(), _workdir(), files)
    elif task == "export":
        export.run(_config(), _workdir())
    elif task == "verify":
        verify.run(_workdir())
    else:
        rollback.run(_workdir(), FLAGS.step)


def _train(config: config_lib.Config) -> None:
    """Train, or score an encoder that needs no training."""
    workdir = Path(FLAGS.workdir or Path("runs") / config.name).absolute()
    if config.knn is not None:
        if FLAGS.distributed:
            raise ConfigError("config.knn takes one process: leave out --distributed")
        knn.run(config, workdir, allow_config_change=FLAGS.allow_config_change)
        return
    if FLAGS.distributed:
        _join(config)
    train.run(
        config,
        workdir,
        allow_config_change=FLAGS.allow_config_change,
        allow_fresh=FLAGS.allow_fresh,
    )


def _workdir() -> Path:
    """Return the directory of a run that is there."""
    if not FLAGS.workdir:
        raise ConfigError(f"--task={FLAGS.task} needs --workdir of a run")
    workdir = Path(FLAGS.workdir).absolute()
    if not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir}: not there")
    return workdir


def _config() -> config_lib.Config:
    """Resolve what --config, or the run directory, and the other flags say."""
    try:
        given = FLAGS.config.copy_and_resolve_references()  # raises what the file did not load
    except Exception as error:
        raise _config_trouble(error) from None
    return config_lib.resolve(given)


def _evaluate() -> None:
    """Score a run, or a file."""
    split, against = FLAGS.split, FLAGS.against and Path(FLAGS.against).absolute()
    workdir = FLAGS.workdir and Path(FLAGS.workdir).absolute()
    if FLAGS.predictions is None:
        evaluate.run(_config(), workdir, split=split, against=against)
    else:
        file = Path(FLAGS.predictions).absolute()
        evaluate.run_file(file, split=split, against=against, folder=workdir)


def _join(config: config_lib.Config) -> None:
    """Join the other processes."""
    try:
        hosts.start(config.guard.heartbeat_seconds, config.guard.watchdog_seconds)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"--distributed: which processes there are is not known ({error}). Start it by SLURM,"
            " on a TPU pod, by GKE or Open MPI, or set JAX_COORDINATOR_ADDRESS=HOST:PORT of process"
            " 0, JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0 on"
        ) from None


def main(argv: list[str]) -> int:
    """Run one task; return the exit code, or leave with it."""
    logging.set_verbosity(logging.FATAL)  # what Orbax logs is also raised, and told once
    _two_arenas()
    _hush()
    if {"--help", "-h", "-help"} & set(argv):
        print((__doc__ or "") + FLAGS.main_module_help())
        return 0
    try:
        _run(_parse(argv))
    except BaseException as error:
        hosts.wait_for_the_cause(error)
        if not isinstance(error, tuple(EXIT_CODES)):
            if hosts.several():
                traceback.print_exc()
                hosts.leave(130 if isinstance(error, KeyboardInterrupt) else 1, repr(error))
            raise
        text = str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = Path(error.filename or FLAGS.workdir or "runs").absolute()
            there = next(path for path in (place, *place.parents) if path.exists())
            text += f" ({shutil.disk_usage(there).free:,} bytes are free there)"
        if isinstance(error, DataError) and not isinstance(error, Leaked):
            text += (
                "\n`python -m data_prep.verify --data SHARDS` reads every byte;"
                " --config.data.bad_records=skip leaves damaged records out"
            )
        code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        if not isinstance(error, Preempted):
            print(f"error: {text}", file=sys.stderr)
            hosts.leave(code, text)
        elif hosts.is_first():
            print(text, file=sys.stderr)
        hosts.close()
        return code
    hosts.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
