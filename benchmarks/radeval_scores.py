"""Score reports with radeval (CheXbert, RadGraph, ...) in an environment of its own, by file.

Command:  python -m venv RADEVAL && RADEVAL/bin/pip install radeval
          RADEVAL/bin/python benchmarks/radeval_scores.py RUN/eval/.../predictions.csv

radeval brings its own torch and transformers and fetches models from Hugging Face, some only for
those who signed their terms; so it is no dependency, and this file imports nothing of ours. It
writes outside_scores.json beside the predictions, with their digest. `--task=evaluate` takes the
scores from there into metrics.json while the predictions stay the same to the byte.
Not yet run with those models: they were out of reach. With radeval 2.2.1's own BLEU it was.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "outside_scores.json"
METRICS = ("f1chexbert", "radgraph")


def pairs(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return (generated, reference) of the studies of each split that have a reference."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        if row["reference"]:
            found.setdefault(row["split"], []).append((row["generated"], row["reference"]))
    return found


def scored(of: Sequence[tuple[str, str]], evaluator: Any) -> dict[str, Any]:
    """Score the studies of a split; of what radeval tells, the single numbers."""
    told = evaluator(hyps=[one for one, _ in of], refs=[other for _, other in of])
    scores = {name: float(value) for name, value in told.items() if isinstance(value, int | float)}
    return {"studies": len(of), "scores": scores}


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--metrics", nargs="+", default=METRICS, help="as radeval names them")
    flags = parser.parse_args(argv)
    from radeval import RadEval

    data = flags.predictions.read_bytes()
    evaluator = RadEval(metrics=list(flags.metrics), show_progress=False)
    found = {
        "tool": f"radeval {importlib.metadata.version('radeval')}",
        "metrics": list(flags.metrics),
        "predictions_sha256": hashlib.sha256(data).hexdigest(),
        "splits": {
            name: scored(of, evaluator) for name, of in pairs(data.decode("utf-8-sig")).items()
        },
    }
    place = flags.predictions.with_name(NAME)
    fresh = place.with_suffix(".tmp")
    fresh.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(fresh, place)
    print(json.dumps(found["splits"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
