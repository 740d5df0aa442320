"""Scores that another program gave the same predictions, as benchmarks/radeval_scores.py does.

They are merged by the digest of predictions.csv and never computed here.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

NAME = "outside_scores.json"


def read(predictions: Path, *, split: str) -> dict[str, Any] | None:
    """Return the scores of a split that stand beside a file of predictions; None if none do.

    Where the file is of other predictions or cannot be read, the reason comes in their place.
    """
    try:
        found = json.loads(predictions.with_name(NAME).read_text(encoding="utf-8"))
        digest = hashlib.sha256(predictions.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {"why": f"{NAME} cannot be read"}
    try:
        if found["predictions_sha256"] != digest:
            return {"why": f"{NAME} is of other predictions"}
        one = found["splits"][split]
        scores = {str(name): float(value) for name, value in one["scores"].items()}
        studies, tool = int(one["studies"]), str(found["tool"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return {"why": f"{NAME} has no scores of split {split!r}"}
    if not all(map(math.isfinite, scores.values())):
        return {"why": f"{NAME} has a score that is no finite number"}
    return {"tool": tool, "studies": studies, "scores": scores}
