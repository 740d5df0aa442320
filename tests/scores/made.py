"""Predictions that tests make."""

import numpy as np

from xmae_jax.scores.predictions import Film, Predictions


def predictions(films=90, *, findings=("Edema", "Mass", "Hernia"), seed=0, ties=True, split="test"):
    """Make films of a third as many patients, with unknown and uncertain labels."""
    draw = np.random.default_rng(seed)
    labels = draw.choice([0, 0, 1, -1, np.nan], size=(films, len(findings)))
    logits = draw.normal(size=labels.shape) + np.nan_to_num(labels) - 0.5
    return Predictions(
        findings=tuple(findings),
        films=tuple(film(i, split=split) for i in range(films)),
        logits=logits.round(1) if ties else logits.astype(np.float32).astype(np.float64),
        labels=labels,
    )


def film(index, **changes):
    """Make a film: three of a patient, two of a study."""
    fields = dict(
        split="test",
        source_index=0,
        place=index,
        id=f"id{index}",
        patient=f"p{index // 3}",
        study=f"s{index // 2}",
        view=("PA", "AP", "L")[index % 3],
        source=("one", "two")[index % 2],
        sex=("F", "M", "")[index // 3 % 3],
        age=float("nan") if index % 7 == 0 else float(index % 95),
    )
    return Film(**(fields | changes))


def auroc_by_pairs(scores, labels):
    """Compare each film that has the finding with each that has not."""
    one, other = scores[labels][:, None], scores[~labels][None]
    return ((one > other) + 0.5 * (one == other)).mean()
