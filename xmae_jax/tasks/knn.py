"""Score an encoder as it is, by the labels of the nearest training films: no training.

The number of neighbours is the one with the largest mean AUROC on the validation split; the test
split, if there is one, is scored with that number alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from xmae_jax import config as config_lib
from xmae_jax import infer, lock, writers
from xmae_jax.checkpoint import step_directories
from xmae_jax.config import Config, ConfigError, KnnConfig
from xmae_jax.data.features import FeatureView
from xmae_jax.data.manifest import DataError
from xmae_jax.evaluators.classification import Classification
from xmae_jax.evaluators.knn import scores
from xmae_jax.evaluators.page import results_page
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.scores.predictions import from_csv
from xmae_jax.tasks.features import Cache, encoder_digest, encoder_params
from xmae_jax.tasks.members import macro
from xmae_jax.tasks.probe import tested_split, with_encoder
from xmae_jax.tasks.split import Split, check_both_sides, open_split
from xmae_jax.tasks.train import (
    NO_DATA,
    check_place,
    config_changes,
    leaks_of,
    mesh_of,
    of_run,
    open_objective,
    refuse_changes,
)


def run(config: Config, workdir: Path, *, allow_config_change: bool) -> None:
    """Write `eval/knn/` in `workdir`, and print what is in it."""
    assert config.knn is not None
    if not config.data.paths:
        raise ConfigError(NO_DATA)
    config = with_encoder(of_run(config))
    objective, training = open_objective(config)
    if not isinstance(objective, Supervised):
        raise ConfigError(
            "config.knn goes with objective.name supervised, without debug.poison_step"
        )
    splits = {"train": training, **_held_out(config, objective.findings)}
    assert config.data.eval_split is not None  # _held_out sees to it
    leaks = leaks_of(config, config.data.eval_split)  # k is chosen on it
    check_place(config, workdir)
    if step_directories(workdir) or (workdir / "run.json").exists():
        raise ConfigError(f"--workdir={workdir}: a run is there; kNN needs a directory of its own")
    with lock.acquire(workdir):
        changes = config_changes(config, workdir)
        refuse_changes(changes, workdir, allow=allow_config_change)
        _run(config, objective, splits, workdir, leaks)


def _run(
    config: Config,
    objective: Supervised,
    splits: dict[str, Split],
    workdir: Path,
    leaks: dict[str, int],
) -> None:
    """Choose k on validation, and score the last split with it."""
    knn = config.knn
    assert knn is not None
    mesh = mesh_of(config)
    folder = Path(config.cache.dir) if config.cache.dir else workdir / "cache"
    params = encoder_params(config, objective, mesh, print)
    writers.write_atomic(workdir / "config.json", config_lib.to_json(config))
    cache = Cache(config, objective, params, mesh, folder, print)
    with jax.set_mesh(mesh):
        films = {name: _films(cache, split, knn) for name, split in splits.items()}
    known = films.pop("train")
    logits, metrics_of_k = _choose(knn, films["val"], known)
    best = metrics_of_k["k"]
    *_, (name, scored) = films.items()
    told = {"val": logits}
    if name != "val":
        ((_, told[name], silent),) = scores(
            scored.features, known.features, known.labels, ks=(best,)
        )
        metrics_of_k["without_vote"] = silent
    evaluator = Classification(
        findings=objective.findings,
        entries={name: splits[name].entries for name in films},
        train_positive=np.array(objective.counts[0]),
    )
    metrics, predictions = evaluator.evaluate(
        {name: partial(of.rows, told[name]) for name, of in films.items()}
    )
    encoder = config.init_from or "a random encoder"
    metrics["knn"] = {
        **metrics_of_k,
        "encoder": encoder_digest(params),
        "init_from": config.init_from,
    }
    metrics["about"] = {
        "data": list(config.data.paths),
        "predictions": f"{best} nearest by {knn.features} features of {encoder}",
        "leaks": leaks,
        "unreadable_films": len(splits[name].films) - len(scored.ids),
    }
    print(_table(metrics["knn"], encoder))
    print(evaluator.table(metrics))
    place = workdir / "eval" / "knn"
    writers.write_atomic(place / "predictions.csv", predictions)
    writers.write_atomic(place / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    page = results_page(from_csv(predictions, name="predictions.csv"), metrics)
    writers.write_atomic(place / "report.html", page)
    print(f"done: {place}")


@dataclasses.dataclass(frozen=True)
class _Films:
    """The films of a split that could be read, in order."""

    ids: Int[np.ndarray, "n 2"]
    """Source and index."""
    features: Float[np.ndarray, "n d"]
    labels: Float[np.ndarray, "n c"]

    def rows(self, logits: Float[np.ndarray, "n c"]) -> Iterator[infer.Row]:
        """Yield a row for each film, as the inference loop does."""
        for i, row, labels in zip(self.ids, logits, self.labels, strict=True):
            yield {"id": i, "logits": row, "labels": labels}


def _films(cache: Cache, split: Split, knn: KnnConfig) -> _Films:
    """Compute, or find, the features of a split."""
    place = {"cls": 0, "mean": 1}[knn.features]
    view = FeatureView(cache.objective.findings, None, None)
    ids, features, labels = [], [], []
    sources = cache.sources(split.film_records, patches=False)
    for number, (source, rows) in enumerate(zip(sources, split.once, strict=True)):
        for index in rows.tolist():
            try:
                film = view(source[index], np.random.default_rng(0))
            except DataError:
                if cache.config.data.bad_records != "skip":
                    raise
                continue
            ids.append((number, index))
            features.append(film["pooled"][-1, place])
            labels.append(film["labels"])
    return _Films(np.array(ids), np.stack(features), np.stack(labels))


def _held_out(config: Config, findings: tuple[str, ...]) -> dict[str, Split]:
    """Open validation and, where there is one, test."""
    if config.data.eval_split is None:
        raise ConfigError("config.data.eval_split is None, and k is chosen on it")
    val = open_split(config, config.data.eval_split, findings=findings)
    check_both_sides(val)
    test = tested_split(config, val, print)
    return {"val": val} if test is None else {"val": val, "test": test}


def _choose(
    knn: KnnConfig, val: _Films, known: _Films
) -> tuple[Float[np.ndarray, "n c"], dict[str, Any]]:
    """Return logits on validation with the best k, and what each k gives there."""
    ks = sorted({min(k, len(known.ids)) for k in knn.k})
    if ks[-1] < max(knn.k):
        print(f"note: there are {len(known.ids)} training films, so no k is larger")
    logits: dict[int, np.ndarray] = {}
    by_k: dict[int, dict[str, Any]] = {}
    for k, logits[k], silent in scores(val.features, known.features, known.labels, ks=ks):
        auroc, average = macro(logits[k], val.labels)
        by_k[k] = {"auroc": auroc, "average_precision": average, "without_vote": silent}
    best = max(ks, key=lambda k: -1.0 if by_k[k]["auroc"] is None else by_k[k]["auroc"])
    if by_k[best]["auroc"] is None:
        raise ConfigError("config.data.eval_split: of no finding both sides could be read there")
    told = {
        "k": best,
        "features": knn.features,
        "references": len(known.ids),
        "without_vote": by_k[best]["without_vote"],
        "by_k": by_k,
    }
    return logits[best], told


def _table(knn: dict[str, Any], encoder: str) -> str:
    """Write what each k gives on validation for a terminal."""
    lines = [
        f"nearest of {knn['references']:,} training films by {knn['features']} features of"
        f" {encoder}: mean AUROC, mean average precision (validation)"
    ]
    for k, of in knn["by_k"].items():
        chosen = "  <- best" if k == knn["k"] else ""
        lines.append(f"  k {k:>4}  {of['auroc']:.4f} {of['average_precision']:.4f}{chosen}")
        if of["without_vote"]:
            lines.append(f"          scores without a vote: {of['without_vote']:,}")
    if knn["without_vote"]:
        lines.append(f"  scores without a vote in what follows: {knn['without_vote']:,}")
    return "\n".join(lines)
