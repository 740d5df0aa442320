"""Run a Java program of pycocoevalcap as a child that reads lines and answers each with one.

Nothing of pycocoevalcap is imported: only its folder is looked up. Without Java or the folder,
NoJava says which of them is lacking.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = "pycocoevalcap"
_START, _EACH = 120.0, 0.5  # seconds: to start and load tables on a busy machine; for each line
# Numbers with a point and text in UTF-8, whatever the user's locale.
_OPTIONS = ("-Xmx2G", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")


class NoJava(RuntimeError):
    """What is asked for needs Java or a jar that is not there, or Java failed."""


def jar(relative: str) -> Path:
    """Return the path of a jar of pycocoevalcap."""
    if shutil.which("java") is None:
        raise NoJava("java is not there")
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / relative).is_file():
            return path
    raise NoJava(f"{_PACKAGE} with {Path(relative).name} is not installed")


def line(text: str) -> str:
    """Put a text on one line: every run of blanks, line ends included, becomes one blank."""
    return " ".join(text.split())


def answers(arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Give all lines to one child, and return its lines, of which there must be as many.

    Raises NoJava where it does not end in time, ends with an error or answers otherwise. Messages
    hold nothing that it wrote, because that may be text of reports.
    """
    if any("\n" in one or "\r" in one for one in lines):
        raise ValueError("a line with a line end in it")
    limit = _START + _EACH * len(lines)
    try:
        done = subprocess.run(
            ["java", *_OPTIONS, *arguments],
            input="".join(f"{one}\n" for one in lines).encode(errors="replace"),
            capture_output=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise NoJava(f"java was ended after {limit:g} s") from None
    except OSError as error:
        raise NoJava(f"java did not start: {error.strerror}") from None
    if done.returncode:
        raise NoJava(f"java ended with {done.returncode}")
    out = done.stdout.decode(errors="replace").removesuffix("\n")
    found = out.split("\n") if lines else []
    if len(found) != len(lines):
        raise NoJava(f"java gave {len(found)} lines for {len(lines)}")
    return found
