"""What predict leaves: a folder for its owner alone, and tables written line by line."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from xmae_jax.config import Config, ConfigError

PREDICTIONS, ABOUT = "predictions.csv", "about.json"


class NoFilm(Exception):
    """Not one file is a film that can be used; main exits 65."""


def make_output(config: Config, workdir: Path, *, folders: Iterable[str]) -> Path:
    """Make the folder, for its owner alone: pictures and file names may say who a patient is."""
    if config.predict.output is not None:
        output = Path(config.predict.output).absolute()
        if output.exists():
            raise ConfigError(f"config.predict.output: {output} is there already")
    else:
        taken = [int(p.name) for p in workdir.glob("predict/*") if p.name.isdecimal()]
        output = workdir / "predict" / str(max(taken, default=0) + 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.mkdir(mode=0o700)
    for name in folders:
        (output / name).mkdir()
    return output


class Table:
    """A CSV that only its owner may read, flushed after each line."""

    def __init__(self, path: Path, columns: Sequence[str]):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape")
        self._table, self._width = csv.writer(self._file, lineterminator="\n"), len(columns)
        self.write(columns)

    def write(self, cells: Sequence[Any]) -> None:
        """Write a line; cells that are missing at its end are empty."""
        self._table.writerow([*cells, *[""] * (self._width - len(cells))])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def shown(name: str) -> str:
    """Escape what the terminal cannot show, such as a name that is not UTF-8."""
    encoding = sys.stdout.encoding or "ascii"
    return name.encode(encoding, "backslashreplace").decode(encoding)
