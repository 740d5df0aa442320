"""Score an encoder as it is, by the labels of the nearest training films: no training.

The number of neighbours is the one with the largest mean AUROC on the validation split; the test
split, if there is one, is scored with it.
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
from xmae_jax import infer, writers
from xmae_jax.config import Config, ConfigError, KnnConfig
from xmae_jax.data.features import FeatureView
from xmae_jax.data.manifest import DataError
from xmae_jax.evaluators.classification import Classification
from xmae_jax.evaluators.knn import scores
from xmae_jax.evaluators.page import results_page
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.scores.predictions import from_csv
from xmae_jax.tasks.features import Cache, encoder_params
from xmae_jax.tasks.members import macro
from xmae_jax.tasks.probe import tested_split, with_encoder
from xmae_jax.tasks.split import Split, open_split
from xmae_jax.tasks.train import NO_DATA, leaks_of, mesh_of, open_objective


def run(config: Config, workdir: Path) -> None:
    """Write `eval/knn/` in `workdir`, and print what is in it."""
    knn = config.knn
    assert knn is not None
    if not config.data.paths:
        raise ConfigError(NO_DATA)
    config = with_encoder(config)
    objective, training = open_objective(config)
    if not isinstance(objective, Supervised):
        raise ConfigError(
            "config.knn goes with objective.name supervised, without debug.poison_step"
        )
    splits = {"train": training, **_held_out(config, objective.findings)}
    leaks = leaks_of(config)
    mesh = mesh_of(config)
    folder = Path(config.cache.dir) if config.cache.dir else workdir / "cache"
    params = encoder_params(config, objective, mesh, print)
    cache = Cache(config, objective, params, mesh, folder, print)
    with jax.set_mesh(mesh):
        films = {name: _films(cache, split, knn) for name, split in splits.items()}
    known = films.pop("train")
    tried = _tried(knn, films, known)
    best = max(tried, key=lambda k: tried[k]["auroc"]["val"] or 0.0)
    evaluator = Classification(
        findings=objective.findings,
        entries={name: splits[name].entries for name in films},
        train_positive=np.array(objective.counts[0]),
    )
    metrics, predictions = evaluator.evaluate(
        {name: partial(of.rows, tried[best]["logits"][name]) for name, of in films.items()}
    )
    metrics["knn"] = {
        "k": best,
        "features": knn.features,
        "references": len(known.ids),
        "init_from": config.init_from,
        "by_k": {k: {n: v for n, v in of.items() if n != "logits"} for k, of in tried.items()},
    }
    metrics |= {"leaks": leaks} if leaks else {}
    encoder = config.init_from or "a random encoder"
    metrics["about"] = {"predictions": f"{best} nearest by {knn.features} features of {encoder}"}
    print(_table(metrics["knn"]))
    print(evaluator.table(metrics))
    place = workdir / "eval" / "knn"
    writers.write_atomic(workdir / "config.json", config_lib.to_json(config))
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
    sources = cache.sources(split.records, patches=False)
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
    test = tested_split(config, val, print)
    return {"val": val} if test is None else {"val": val, "test": test}


def _tried(knn: KnnConfig, films: dict[str, _Films], known: _Films) -> dict[int, dict[str, Any]]:
    """Score the splits with every k."""
    ks = sorted({min(k, len(known.ids)) for k in knn.k})
    if ks[-1] < max(knn.k):
        print(f"note: there are {len(known.ids)} training films, so no k is larger")
    tried: dict[int, dict[str, Any]] = {
        k: {"logits": {}, "auroc": {}, "average_precision": {}, "without_vote": {}} for k in ks
    }
    for name, of in films.items():
        for k, logits, silent in scores(of.features, known.features, known.labels, ks=ks):
            means = macro(logits, of.labels)
            tried[k]["logits"][name] = logits
            tried[k]["auroc"][name], tried[k]["average_precision"][name] = means
            tried[k]["without_vote"][name] = silent
    return tried


def _table(knn: dict[str, Any]) -> str:
    """Write what each k gives for a terminal."""
    lines = [
        f"nearest of {knn['references']:,} training films by {knn['features']} features of"
        f" {knn['init_from'] or 'a random encoder'}: mean AUROC, mean average precision"
    ]
    for k, of in knn["by_k"].items():
        parts = [
            f"{name} {auroc:.4f} {of['average_precision'][name]:.4f}"
            for name, auroc in of["auroc"].items()
            if auroc is not None
        ]
        chosen = "  <- best on val" if k == knn["k"] else ""
        lines.append(f"  k {k:>4}  {'   '.join(parts)}{chosen}")
        if any(of["without_vote"].values()):
            told = ", ".join(f"{name} {n:,}" for name, n in of["without_vote"].items())
            lines.append(f"          scores without a vote: {told}")
    return "\n".join(lines)
