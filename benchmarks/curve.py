"""Train and test a config with several values of one key, each with several seeds: a table.

    python -m benchmarks.curve --output runs/curve --vary data.label_fraction=0.01,0.1,1 \
        --seeds 0 1 2 -- --config=configs/finetune_linear.py --config.data.path=SHARDS

What stands after `--` goes to `xmae_jax.main`. Every run has a directory of its own, so the same
command again goes on; `curve.csv`, and `curve.png` where matplotlib is there, lie beside them.
Other keys: data.shots=1,4,16, data.balance=None,0.1. Values with commas, as names of sources may
have, are given one by one: --vary "data.leave_out_source=A, B" --vary data.leave_out_source=C.
Nearest neighbours without a test split are scored on validation, and the table says so.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SCORES = {"macro_auroc": "mean AUROC", "macro_average_precision": "mean average precision"}


def measure(work: Path, flags: list[str]) -> dict[str, Any]:
    """Train and test in one directory, as far as that is not done; return the scores."""
    main = [sys.executable, "-m", "xmae_jax.main", f"--workdir={work}"]
    if _scores(work) is None:
        if not (work / "final.json").is_file():
            subprocess.run([*main, *flags], check=True)
        if _scores(work) is None:  # nearest neighbours come with their scores
            subprocess.run([*main, "--task=evaluate"], check=True)
    scores = _scores(work)
    if scores is None:
        raise SystemExit(f"{work} has no scores of a test split")
    return scores


def folder_of(key: str, value: str) -> str:
    """Name the folder of a value; one that is no name gets a digest, as others may look like it."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", value)
    mark = "" if safe == value else f"_{hashlib.sha256(value.encode()).hexdigest()[:8]}"
    return f"{key}_{safe}{mark}"


def varied(given: list[str]) -> tuple[str, list[str]]:
    """Read KEY=VALUE,VALUE,... given once, or KEY=VALUE given several times, whole values."""
    pairs = [one.partition("=") for one in given]
    key = pairs[0][0]
    if any(name != key or not equals for name, equals, _ in pairs):
        raise SystemExit("--vary takes KEY=VALUE,VALUE,..., or several times KEY=VALUE of one key")
    values = [value for _, _, value in pairs]
    return key, values[0].split(",") if len(values) == 1 else values


def _scores(work: Path) -> dict[str, Any] | None:
    tested = work.glob("eval/classification_test/step_*/metrics.json")
    found = sorted(tested, key=lambda path: int(path.parent.name.removeprefix("step_")))
    found += work.glob("eval/knn/metrics.json")
    return json.loads(found[-1].read_text()) if found else None


def table(lines: list[dict[str, Any]], key: str) -> str:
    """Write mean, least and largest over the seeds for each value."""
    values = list(dict.fromkeys(line["value"] for line in lines))
    seeds, splits = (sorted({line[name] for line in lines}) for name in ("seed", "split"))
    told = f"({len(seeds)} seeds, {' and '.join(splits)})"
    text = [f"{key:<24} {'   '.join(f'{name:<26}' for name in SCORES.values())}{told}"]
    for value in values:
        cells = []
        for name in SCORES:
            of = [line[name] for line in lines if line["value"] == value and line[name] is not None]
            mean = f"{statistics.mean(of):.4f} ({min(of):.4f}-{max(of):.4f})" if of else "undefined"
            cells.append(f"{mean:<26}")
        text.append(f"{value:<24} {'   '.join(cells)}".rstrip())
    return "\n".join(text)


def plot(lines: list[dict[str, Any]], key: str, path: Path) -> None:
    """Draw the mean AUROC of every run over the values, if matplotlib is there."""
    try:
        import matplotlib
    except ImportError:
        print("note: no picture, for want of matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    values = list(dict.fromkeys(line["value"] for line in lines))
    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    known = [line for line in lines if line["macro_auroc"] is not None]
    place = [values.index(line["value"]) for line in known]
    axes.plot(place, [line["macro_auroc"] for line in known], "o", alpha=0.6)
    splits = " and ".join(sorted({line["split"] for line in lines}))
    axes.set(xticks=range(len(values)), xticklabels=values, xlabel=key)
    axes.set_ylabel(f"mean AUROC ({splits})")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run every value with every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vary", required=True, action="append", help="KEY=VALUE,VALUE,...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("flags", nargs="*", help="after --: flags of xmae_jax.main")
    args = parser.parse_args(argv)
    key, values = varied(args.vary)
    lines = []
    for value in values:
        for seed in args.seeds:
            flags = [*args.flags, f"--config.{key}={value}", f"--config.seed={seed}"]
            scores = measure(args.output / folder_of(key, value) / f"seed_{seed}", flags)
            line = {"value": value, "seed": seed, "split": scores["split"]}
            lines.append(line | {name: scores[name] for name in SCORES})
    with (args.output / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["value", "seed", "split", *SCORES], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    plot(lines, key, args.output / "curve.png")
    print(table(lines, key))
    return 0


if __name__ == "__main__":
    sys.exit(main())
