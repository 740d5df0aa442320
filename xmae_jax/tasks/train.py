"""Train, or resume: config to objective, data and evaluators, then the loop."""

from __future__ import annotations

from pathlib import Path

from xmae_jax import train
from xmae_jax.config import Config, ConfigError, objective_of
from xmae_jax.data.batch import EveryRow, LoadStep
from xmae_jax.data.plan import Plan, mixture_counts
from xmae_jax.data.records import Records
from xmae_jax.data.views import VIEWS
from xmae_jax.evaluators.reconstruction import Reconstruction
from xmae_jax.objectives import OBJECTIVES

EVALUATORS = {"reconstruct": ("reconstruction", Reconstruction)}
"""Which evaluator reads which prediction."""

NO_DATA = """config.data.path is not set. These two commands make films to try it on:
  python -m data_prep.phantoms --output runs/phantoms/films --count 1000 --seed 0
  python -m data_prep.build --input runs/phantoms/films --output runs/phantoms/shards
then add --config.data.path=runs/phantoms/shards"""


def run(config: Config, workdir: Path) -> None:
    """Train to the end, or raise what stopped it."""
    if not config.data.paths:
        raise ConfigError(NO_DATA)
    objective = objective_of(config, OBJECTIVES)
    sources = [Records(path, config.data.split) for path in config.data.paths]
    held_out = [Records(path, config.data.eval_split) for path in config.data.paths]

    sizes = tuple(len(source) for source in sources)
    plan = Plan(
        seed=config.seed,
        sizes=sizes,
        counts=config.data.mixture or mixture_counts(sizes, config.batch_size),
        digests=tuple(source.digest for source in sources),
    )
    if plan.batch_size != config.batch_size:
        raise ConfigError(
            f"config.data.mixture {config.data.mixture} sums to {plan.batch_size}, and"
            f" config.batch_size is {config.batch_size}"
        )

    def view(crop_scale: tuple[float, float] | None):
        return VIEWS[objective.view](
            image_size=config.image_size,
            grid=objective.grid,
            contour_region=config.data.contour_region,
            crop_scale=crop_scale,
        )

    def every(records: list[Records]) -> LoadStep:
        ids = EveryRow(tuple(len(r) for r in records), config.batch_size, limit=None)
        return LoadStep(ids, records, view(None), config.seed, slice(None))

    train.train(
        config,
        objective,
        train.Feed(
            plan=plan,
            train=LoadStep(
                plan.ids, sources, view(config.data.crop_scale), config.seed, slice(None)
            ),
            evaluation={"train": every(sources), "val": every(held_out)},
        ),
        {
            name: evaluator()
            for fn, (name, evaluator) in EVALUATORS.items()
            if fn in objective.predict_fns()
        },
        workdir,
    )
