"""How well a model foretells reports: perplexity of held-out texts, and of some of training.

exp of the mean negative log-likelihood of a token: sums over all studies, divided once, so that a
long report counts for more. It depends on the tokenizer; `bits_per_character` does not.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmae_jax import writers
from xmae_jax.data.text import Tokenizer

Row = dict[str, Any]
Splits = Mapping[str, Callable[[], Iterable[Row]]]
COLUMNS = ("split", "source", "index", "tokens", "characters", "nll")


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The evaluator."""

    tokenizer: Tokenizer

    predict = "likelihood"

    def evaluate(self, splits: Splits) -> tuple[dict[str, Any], str]:
        """Return (metrics, each study's sums as CSV) of the rows of each split."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for split, rows in splits.items():
            for row in rows():
                source, index = (int(i) for i in row["id"])
                length = len(self.tokenizer.decode(row["text"]))
                nll = f"{float(row['nll']):.9g}"
                writer.writerow([split, source, index, int(row["tokens"]), length, nll])
        return perplexities(text.getvalue()), text.getvalue()

    def table(self, metrics: dict[str, Any]) -> str:
        """Write the perplexities for a terminal."""
        lines = []
        for split, entry in metrics["splits"].items():
            value, bits = entry["perplexity"], entry["bits_per_character"]
            told = "no finite number" if entry["tokens"] else "no text"
            if value is not None and bits is not None:
                told = f"{value:.3f} a token, {bits:.3f} bits a character"
            of = f"{entry['tokens']:,} tokens of {entry['studies']:,} studies"
            lines.append(f"perplexity ({split}): {told}; {of}")
        return "\n".join(lines)

    def draw(self, rows: Iterable[Row], path: Path, *, title: str) -> None:
        """Write each text, every token the redder the less the model foretold it."""
        texts = [self._pieces(row) for row in rows]
        writers.shaded_texts(path, texts, title=f"{title}: a token's probability, white 1, red 1 %")

    def _pieces(self, row: Row) -> list[tuple[str, float]]:
        """Return each token as written, a blank before it where a word begins, and its shade."""
        ids = row["text"][: int(row["tokens"])]
        names = [self.tokenizer.model.id_to_piece(int(one)).replace("\u2581", " ") for one in ids]
        nll = np.nan_to_num(row["token_nll"][: len(ids)], nan=np.inf)
        shades = np.clip(nll / math.log(100), 0, 1)
        return list(zip(names, shades.tolist(), strict=True))


def perplexities(predictions: str) -> dict[str, Any]:
    """Sum what `Perplexity.evaluate` wrote, split by split."""
    splits: dict[str, list[Sequence[float]]] = {}
    for line in csv.DictReader(io.StringIO(predictions)):
        values = [float(line[name]) for name in ("tokens", "characters", "nll")]
        splits.setdefault(line["split"], []).append(values)
    return {"splits": {name: _sums(np.array(rows)) for name, rows in splits.items()}}


def _sums(rows: np.ndarray) -> dict[str, Any]:
    tokens, characters, nll = rows.sum(axis=0).tolist()
    mean = nll / tokens if tokens else math.nan
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))
    return {
        "studies": int((rows[:, 0] > 0).sum()),
        "tokens": int(tokens),
        "nll": _finite(mean),
        "perplexity": _finite(perplexity),
        "bits_per_character": _finite(nll / characters / math.log(2)) if characters else None,
    }


def _finite(value: float) -> float | None:
    """Return a number that JSON has; a model that diverges gives others."""
    return value if math.isfinite(value) else None
