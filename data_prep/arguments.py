"""The command line of `data_prep.build`, checked before anything is read; exit codes of all."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from data_prep import splits
from data_prep.adapters import ADAPTERS
from data_prep.contours import LUNGS, RETROCARDIAC
from data_prep.duplicates import POLICIES
from data_prep.films import FRAMES
from xmae_jax.data.manifest import MANIFEST
from xmae_jax.data.records import CODECS
from xmae_jax.data.transforms import FITS

USAGE, BAD_DATA, LOCKED, DISK, INTERRUPTED = 64, 65, 73, 74, 130
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")  # of a data set, as TFDS allows it


class UsageError(Exception):
    """The command line asks for something that cannot be; exit code 64."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would exit with code 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UsageError(message)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; UsageError says what is wrong with it."""
    parser = Parser(prog="python -m data_prep.build", description="raw archive -> shards")
    parser.add_argument("--input", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--adapter", choices=ADAPTERS, default="plain", help="layout of the input")
    parser.add_argument("--masks", type=Path, metavar="PATH",
                        help="a folder or CheXmask's CSV; default: INPUT/lung_masks")  # fmt: skip
    parser.add_argument("--labels", type=Path, metavar="CSV", help="default: INPUT/labels.csv")
    parser.add_argument("--reports", type=Path, metavar="CSV", help="default: INPUT/reports.csv")
    parser.add_argument("--size", type=int, default=1280, help="side of a stored film in pixels")
    parser.add_argument("--fit", choices=FITS, default="pad")
    parser.add_argument("--codec", choices=CODECS, default="jpeg", help="of stored films")
    parser.add_argument("--lungs", choices=LUNGS, default="auto")
    parser.add_argument("--retrocardiac", choices=RETROCARDIAC, default="exclude",
                        help="the lung behind the heart, in the model's contours")  # fmt: skip
    parser.add_argument("--frames", choices=FRAMES, default="refuse",
                        help="of files with several frames or pages")  # fmt: skip
    parser.add_argument("--licences", nargs="+", metavar="NAME",
                        help="leave out films, and masks, of any other licence")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--runner", choices=("local", "beam"), default="local")
    parser.add_argument("--beam-options", default="", metavar="TEXT", help="what Beam is told")
    parser.add_argument("--name", default="films", help="of the data set, in the shards' names")
    parser.add_argument("--duplicates", choices=POLICIES, default="keep")
    parser.add_argument("--exclude", type=Path, nargs="+", default=[], metavar="MANIFEST",
                        help="leave out what these data sets hold")  # fmt: skip
    parser.add_argument("--allow-other-keys", action="store_true")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of the ids; made if absent")
    parser.add_argument("--id-map", type=Path, metavar="FILE", help="write stored id -> input path")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if not options.input.is_dir():
        raise UsageError(f"--input {options.input}: no such folder")
    for name in ("masks", "labels", "reports"):
        path = getattr(options, name)
        if path is not None and not (path.is_file() or name != "labels" and path.is_dir()):
            raise UsageError(f"--{name} {path}: not there")
    if not 64 <= options.size <= 4096:
        raise UsageError(f"--size {options.size}: 64 to 4096 pixels")
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least 1")
    if not NAME.fullmatch(options.name):
        raise UsageError(f"--name {options.name!r}: lower-case letters, digits and _")
    for path in options.exclude:
        if not (directory_of(path) / MANIFEST).is_file():
            raise UsageError(f"--exclude {path}: no manifest there")
    _check_places(options)


def directory_of(path: Path) -> Path:
    """Return the data set that a path means: a directory, or the manifest in it."""
    return path.parent if path.name == MANIFEST else path


def _check_places(options: argparse.Namespace) -> None:
    """Refuse an output among the inputs, and secrets in the output."""
    output, source = options.output.resolve(), options.input.resolve()
    if options.output.exists() and not options.output.is_dir():
        raise UsageError(f"--output {options.output}: not a folder")
    films = source / "images" if (source / "images").is_dir() else source
    if source.is_relative_to(output) or output.is_relative_to(films):
        raise UsageError(f"--output {options.output}: must lie outside the input")
    if os.path.ismount(output):
        raise UsageError(f"--output {options.output}: a mount point; choose a folder in it")
    options.output = output  # a link would be replaced, not what it points to
    options.key = options.key or splits.default_key_path()
    for name in ("key", "id_map"):
        path = getattr(options, name)
        inside = (output, output.with_name(output.name + ".incomplete"))
        if path is not None and any(map(path.resolve().is_relative_to, inside)):
            raise UsageError(f"--{name.replace('_', '-')} {path}: must not lie inside the output")
    if options.id_map is not None:
        id_map = options.id_map.resolve()
        if not id_map.parent.is_dir():
            raise UsageError(f"--id-map {options.id_map}: no such folder")
        tables = [path.resolve() for path in (options.key, options.labels) if path is not None]
        if id_map in tables or id_map.is_relative_to(films):
            raise UsageError(f"--id-map {options.id_map}: would overwrite what is read")
