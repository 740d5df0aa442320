"""Score an encoder as it is, by the labels of the nearest training films: no training.

The number of neighbours is the one with the largest mean AUROC on the validation split; the test
split, if there is one, is scored with it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from xmae_jax import config as config_lib
from xmae_jax import infer, rng, sharding, train, writers
from xmae_jax.config import Config, ConfigError, KnnConfig
from xmae_jax.data.batch import EveryRow
from xmae_jax.evaluators.classification import Classification
from xmae_jax.evaluators.knn import scores
from xmae_jax.program import lay_out
from xmae_jax.scores.ranking import point, rank
from xmae_jax.tasks.split import Split, open_split
from xmae_jax.tasks.train import NO_DATA, every_row, leaks_of, mesh_of, open_objective
from xmae_jax.typing import TrainState

Scored = dict[str, Float[np.ndarray, "n c"]]
"""Split -> logits of its films, in order."""


@dataclasses.dataclass(frozen=True)
class _Films:
    """Features of a split's films, in order; one that cannot be read is left out."""

    ids: np.ndarray
    features: np.ndarray
    labels: np.ndarray


def run(config: Config, workdir: Path) -> None:
    """Write `eval/knn/` in `workdir`, and print what is in it."""
    assert config.knn is not None
    if not config.data.paths:
        raise ConfigError(NO_DATA)
    objective, training = open_objective(config)
    findings = training.subset.findings
    if not findings:
        raise ConfigError("config.knn: the objective has no findings")
    splits = {"train": training, **_held_out(config, findings)}
    leaks = leaks_of(config)
    films = _features(config, objective, splits)
    known = films.pop("train")
    tried = _tried(config.knn, films, known)
    best = max(tried, key=lambda k: tried[k]["auroc"]["val"] or 0.0)
    rows = {
        name: (
            {"id": i, "logits": logits, "labels": labels}
            for i, logits, labels in zip(
                of.ids, tried[best]["logits"][name], of.labels, strict=True
            )
        )
        for name, of in films.items()
    }
    evaluator = Classification(
        findings=findings,
        entries={name: split.entries for name, split in splits.items() if name != "train"},
        train_positive=np.array((known.labels == 1).sum(axis=0), float),
    )
    metrics, predictions = evaluator.evaluate({name: lambda of=of: of for name, of in rows.items()})
    metrics["knn"] = {
        "k": best,
        "features": config.knn.features,
        "references": len(known.ids),
        "init_from": config.init_from,
        "by_k": {k: {n: v for n, v in of.items() if n != "logits"} for k, of in tried.items()},
    }
    metrics |= {"leaks": leaks} if leaks else {}
    print(_table(metrics["knn"]))
    print(evaluator.table(metrics))
    folder = workdir / "eval" / "knn"
    writers.write_atomic(workdir / "config.json", config_lib.to_json(config))
    writers.write_atomic(folder / "predictions.csv", predictions)
    writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    print(f"done: {folder}")


def _held_out(config: Config, findings: tuple[str, ...]) -> dict[str, Split]:
    """Open validation and, where there is one, test."""
    if config.data.eval_split is None:
        raise ConfigError("config.data.eval_split is None, and k is chosen on it")
    splits = {"val": open_split(config, config.data.eval_split, findings=findings)}
    try:
        splits["test"] = open_split(config, "test", findings=findings)
    except ConfigError as error:
        print(f"note: only {config.data.eval_split} is scored ({error})")
    return splits


def _features(config: Config, objective: Any, splits: dict[str, Split]) -> dict[str, _Films]:
    """Run the encoder once over every film."""
    assert config.knn is not None
    kind = config.knn.features

    def features(
        params: Any, frozen: Any, extra: Any, batch: dict[str, Array], key: Array
    ) -> dict[str, Array]:
        found = objective.averaged(params, frozen, extra).features(batch)
        valid = found.valid[:, :, None]
        mean = (found.patches * valid).sum(axis=1) / valid.sum(axis=1)
        pooled = found.cls if kind == "cls" else mean
        return {"features": pooled.astype("float32"), "image": batch["image"][:, :0]}

    mesh = mesh_of(config)
    with jax.set_mesh(mesh):
        program = lay_out(config, objective, mesh)
        make = jax.jit(program.init, out_shardings=program.shardings)
        state = make(rng.key(config.seed, "init"))
        if config.init_from is None:
            print("note: config.init_from is None: the encoder is random")
        else:
            state, lines = train.initialise(state, config, objective, program.shardings)
            print("\n".join(lines))
        predict = infer.compile_predict(features, mesh, rng.key(config.seed, "eval"))
        return {
            name: _run_over(config, objective, split, predict, state, mesh, name)
            for name, split in splits.items()
        }


def _run_over(
    config: Config,
    objective: Any,
    split: Split,
    predict: infer.Predict,
    state: TrainState,
    mesh: jax.sharding.Mesh,
    name: str,
) -> _Films:
    load = every_row(config, objective, split=split, mesh=mesh, limit=config.eval_rows)
    ids = load.ids
    assert isinstance(ids, EveryRow)
    load = dataclasses.replace(load, rows=sharding.host_rows(mesh, ids.batch_size))
    films = infer.rows(
        predict, state, load, steps=ids.steps, mesh=mesh, threads=config.data.threads
    )
    seen = [
        (row["id"], row["features"], row["labels"])
        for row in tqdm(films, f"features of {name}", ids.total, unit=" films")
    ]
    return _Films(*(np.stack(column) for column in zip(*seen, strict=True)))


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
            ranked = [
                point(rank(x[y >= 0].astype(np.float64), y[y >= 0] == 1))
                for x, y in zip(logits.T, of.labels.T, strict=True)
            ]
            defined = np.array([pair for pair in ranked if pair[0] is not None]).reshape(-1, 2)
            means = defined.mean(axis=0).tolist() if len(defined) else (None, None)
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
