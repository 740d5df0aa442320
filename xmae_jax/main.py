"""The one command line: `python -m xmae_jax.main --config=configs/X.py --workdir=DIR`.

A config file is code and is run; anything read from a run directory is data. Exit codes: 0 done,
64 bad config or usage, 65 bad data, 75 preempted and saved (start me again).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from xmae_jax import config as config_lib
from xmae_jax.config import ConfigError
from xmae_jax.data.records import DataError
from xmae_jax.tasks import TASKS
from xmae_jax.train import Preempted

EX_USAGE, EX_DATA, EX_PREEMPTED = 64, 65, 75

# Every collective of every simulated CPU device blocks a thread; with one thread a core, eight
# devices on two cores wait for each other for ever.
if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    os.environ.setdefault("PJRT_NPROC", "64")

FLAGS = flags.FLAGS
flags.DEFINE_enum("task", "train", list(TASKS), "What to do.")
flags.DEFINE_string("workdir", None, "Run directory; default runs/<config name>.")
flags.DEFINE_bool(
    "allow_config_change", False, "Go on in a run directory although its config was another."
)


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


def _parse(argv: list[str]) -> tuple[config_lib.Config, Path]:
    """Read the command line; every error in it is a ConfigError."""
    _define_config(argv[1:])
    try:
        rest = FLAGS(argv)
        given = FLAGS.config.copy_and_resolve_references()  # raises what the file did not load for
    except flags.Error as error:
        raise ConfigError(str(error)) from None
    except Exception as error:  # a config file is code: anything may come out of it
        text = " ".join(str(error).replace("\\n", " ").replace("\\", "").split())
        raise ConfigError(f"--config: {text}") from None
    if rest[1:]:
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1:])}")
    config = config_lib.resolve(given)
    return config, Path(FLAGS.workdir or Path("runs") / config.name)


def main(argv: list[str]) -> int:
    """Run one task; return the exit code."""
    logging.set_verbosity(logging.ERROR)
    if {"--help", "-h", "-help"} & set(argv):
        print((__doc__ or "") + FLAGS.main_module_help())
        return 0
    try:
        config, workdir = _parse(argv)
        TASKS[FLAGS.task](config, workdir, allow_config_change=FLAGS.allow_config_change)
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return EX_PREEMPTED
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EX_USAGE
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return EX_DATA
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
