"""How well hidden patches are predicted, in pixel values, beside predictors without a model.

All errors are mean squared errors over the pixels of hidden valid patches, pixel values from 0 to
1. The predictors know the visible pixels of a film, training films, or the film's own mean:

- `film_mean`: the mean of the whole film without its padding (it looks at hidden pixels too, so no
  constant does better by much),
- `mean_film`: the pixelwise mean of training films,
- `gaussian_fill`: the visible pixels blurred by a Gaussian and divided by its weight (normalised
  convolution, Knutsson and Westin 1993); its width is the best of seven on 32 of
  them.

A model of normalised patches (norm_pix_loss) is told each hidden patch's own mean and deviation to
make pixels at all. Beating the predictors above would then mean nothing, so it is compared with
`patch_mean` alone, which fills each hidden patch with its own true mean.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter

from xmae_jax import writers

Row = dict[str, Any]
Splits = dict[str, Callable[[], Iterable[Row]]]

WIDTHS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5)
"""Widths of the Gaussian fill, in patches."""


def _film(row: Row) -> Float[np.ndarray, "h w"]:
    return row["image"][:, :, 0].astype(np.float64) / 255


def _pixels(patches: Bool[np.ndarray, " n"], size: int) -> Bool[np.ndarray, "h w"]:
    side = int(round(len(patches) ** 0.5))
    cell = np.ones((size // side, size // side))
    return np.kron(patches.reshape(side, side), cell).astype(bool)


def gaussian_fill(
    film: Float[np.ndarray, "h w"], visible: Bool[np.ndarray, "h w"], sigma: float
) -> Float[np.ndarray, "h w"]:
    """Estimate every pixel from the visible ones; far from all of them, by their mean."""
    weight = gaussian_filter(visible.astype(np.float64), sigma, truncate=6)
    blurred = gaussian_filter(np.where(visible, film, 0.0), sigma, truncate=6)
    return np.where(weight > 1e-9, blurred / np.maximum(weight, 1e-9), film[visible].mean())


@dataclasses.dataclass
class Reconstruction:
    """The evaluator; what training films say is worked out once and kept."""

    _mean_film: np.ndarray | None = None
    _width: float = 0.0
    _training_films: int = 0

    predict = "reconstruct"

    def evaluate(self, splits: Splits) -> tuple[dict[str, Any], str]:
        """Return (metrics, predictions as CSV) of the rows of "val"; "train" sets the baselines."""
        if self._mean_film is None:
            self._learn(splits["train"]())
        lines = list(self._films(splits["val"]()))
        names = [
            n.removeprefix("sse_") for n in (lines[0] if lines else ()) if n.startswith("sse_")
        ]
        pixels = sum(line["hidden_pixels"] for line in lines)
        mse = {n: sum(line[f"sse_{n}"] for line in lines) / max(pixels, 1) for n in names}
        best = min((n for n in names if n != "model"), key=mse.__getitem__)
        metrics = {
            "rows": len(lines),
            "hidden_pixels": pixels,
            **{f"mse_{name}": value for name, value in mse.items()},
            "best_baseline": best,
            "gaussian_width_patches": self._width,
            "ratio_to_best_baseline": mse["model"] / mse[best] if mse[best] > 0 else None,
        }
        return metrics, _csv(lines)

    def table(self, metrics: dict[str, Any]) -> str:
        """Write the comparison for a terminal."""
        labels = {
            "film_mean": "the film's mean",
            "mean_film": f"the mean of {self._training_films} training films",
            "gaussian_fill": f"Gaussian fill, width {metrics['gaussian_width_patches']:g} patches",
            "patch_mean": "each hidden patch's own true mean",
            "model": "the model",
        }
        lines = [
            f"hidden patches of {metrics['rows']} held-out films, mean squared error (pixels 0-1)"
        ]
        shown = {name: text for name, text in labels.items() if f"mse_{name}" in metrics}
        lines += [f"  {text:<34} {metrics[f'mse_{name}']:.6f}" for name, text in shown.items()]
        if "patch_mean" in shown:
            lines.append("  (the model is given each hidden patch's true mean and deviation)")
        if metrics["ratio_to_best_baseline"] is not None:
            change = 100 * (1 - metrics["ratio_to_best_baseline"])
            word = "below" if change >= 0 else "above"
            lines.append(
                f"  the model is {abs(change):.1f} % {word} {labels[metrics['best_baseline']]}"
            )
        return "\n".join(lines)

    def draw(self, rows: Iterable[Row], path: Path, *, title: str) -> None:
        """Draw input, contour, visible patches, reconstruction and error of each row."""
        panels = []
        for row in rows:
            if row["given_statistics"] and not panels:
                title += "; hidden patches have their true mean and deviation put in"
            grid = (int(round(len(row["hidden"]) ** 0.5)),) * 2
            panels.append(
                writers.reconstruction_panels(
                    row["image"],
                    row["region"],
                    row["hidden"].reshape(grid),
                    row["target"].reshape(grid),
                    row["reconstruction"],
                )
            )
        writers.picture(path, panels, title=title)

    def _learn(self, rows: Iterable[Row]) -> None:
        """Average the training films, and choose the width of the Gaussian fill on them."""
        total, count, errors = None, 0, np.zeros(len(WIDTHS))
        for row in rows:
            film = _film(row)
            total, count = (film if total is None else total + film), count + 1
            if count <= 32:
                visible, target, patch = _masks(row)
                for i, width in enumerate(WIDTHS):
                    fill = gaussian_fill(film, visible, width * patch)
                    errors[i] += ((fill - film)[target] ** 2).sum()
        if total is None:
            raise ValueError("no training film to set the baselines of the reconstruction")
        self._mean_film, self._width = total / count, WIDTHS[int(errors.argmin())]
        self._training_films = count

    def _films(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            film, (visible, target, patch) = _film(row), _masks(row)
            if row["given_statistics"]:
                guesses = {"patch_mean": _patch_means(film, int(patch))}
            else:
                guesses = {
                    "film_mean": np.full_like(film, film[_valid(row)].mean()),
                    "mean_film": self._mean_film,
                    "gaussian_fill": gaussian_fill(film, visible, self._width * patch),
                }
            guesses["model"] = row["reconstruction"][:, :, 0].astype(np.float64)
            errors = {
                f"sse_{name}": float(((guess - film)[target] ** 2).sum())
                for name, guess in guesses.items()
            }
            source, index = (int(i) for i in row["id"])
            yield {"source": source, "index": index, "hidden_pixels": int(target.sum()), **errors}


def _masks(row: Row) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (visible pixels, target pixels, patch side)."""
    size = row["image"].shape[0]
    visible, target = _pixels(~row["hidden"], size), _pixels(row["target"], size)
    return visible, target, size / len(row["hidden"]) ** 0.5


def _valid(row: Row) -> Bool[np.ndarray, "h w"]:
    """Return which pixels are film and not padding."""
    h, w = row["image"].shape[:2]
    y0, x0, y1, x1 = row["box"]
    rows, columns = (np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w
    return ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))


def _patch_means(film: Float[np.ndarray, "h w"], patch: int) -> Float[np.ndarray, "h w"]:
    h, w = film.shape
    means = film.reshape(h // patch, patch, w // patch, patch).mean(axis=(1, 3))
    return np.kron(means, np.ones((patch, patch)))


def _csv(lines: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["source"], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in line.items()})
    return text.getvalue()
