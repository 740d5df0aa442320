"""Plot a run's training loss, inside and outside the contour: plot_loss.py WORKDIR OUTPUT.png."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


def main(workdir: str, output: str) -> None:
    """Draw the running mean over 20 steps of each term."""
    log = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    # After a kill, steps stand twice: keep the later line.
    steps = {x["step"]: x for x in map(json.loads, log) if x["kind"] == "train"}
    lines = [steps[step] for step in sorted(steps)]
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for name, label in (
        ("training_loss", "all hidden patches"),
        ("loss_inside", "inside the contour"),
        ("loss_outside", "outside"),
    ):
        points = [(line["step"], line[name]) for line in lines if line[name] is not None]
        means = [
            sum(v for _, v in points[max(0, i - 19) : i + 1]) / min(i + 1, 20)
            for i in range(len(points))
        ]
        axes.plot([step for step, _ in points], means, label=label)
    axes.set(xlabel="step", ylabel="loss (mean of 20 steps)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
