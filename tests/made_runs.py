"""Run directories with random weights: what a run leaves, without training it."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xmae_jax import checkpoint
from xmae_jax import config as config_lib
from xmae_jax.data.manifest import data_set, film_format
from xmae_jax.data.records import Records
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.optim import split
from xmae_jax.rundir import Run
from xmae_jax.tasks.model import named
from xmae_jax.tasks.split import open_split
from xmae_jax.tasks.text import text_record, tokenizer_of
from xmae_jax.typing import TrainState

SMALL = dict(width=32, depth=2, heads=2, patch_size=16, base_grid=4)


def make_run(workdir: Path, config: str, *, data: Path | None = None, step: int = 7, **changes):
    """Write the run directory of a config's smoke variant; return its config.

    changes: of the config, `objective__encoder__width=8` for a key below others. Every parameter is
    noise, as fresh biases are 0 and fresh scales 1, which hides errors; so is an average of them.
    """
    c = importlib.import_module(f"configs.{config}").get_config("smoke")
    c.image_size, c.data.path = 64, None if data is None else str(data)
    if "mask" in c.objective:
        c.objective.mask.keep = 5
        c.objective.decoder.update(width=16, depth=2, heads=2)
    if "encoder" in c.objective:
        c.objective.encoder.update(SMALL)
    for key, value in changes.items():
        *folders, last = key.split("__")
        place = c
        for folder in folders:
            place = place[folder]
        place[last] = value
    made = config_lib.resolve(c)
    objective = named(config_lib.objective_of(made, OBJECTIVES))
    draw = np.random.default_rng(0)

    def noise(tree):
        return jax.tree.map(lambda x: 0.2 * draw.standard_normal(x.shape, np.float32), tree)

    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params, frozen = split(noise(shapes), made.optim.freeze)
    extra = noise(jax.eval_shape(objective.start, params))
    state = jax.tree.map(jnp.asarray, TrainState(np.int32(step), params, frozen, {}, extra, {}))
    workdir.mkdir(parents=True)
    sources, text = [Records(path, made.data.split) for path in made.data.paths], {}
    if made.data.text is not None:
        training = open_split(made, made.data.split, findings=())
        sources, tokenizer = training.records, tokenizer_of(made, workdir, training)
        text = text_record(made, tokenizer)
    listed = [
        {"records": len(s), "digest": s.digest, "film": film_format(path), **text}
        for path, s in zip(made.data.paths, sources, strict=True)
    ]
    (workdir / "config.json").write_text(config_lib.to_json(made))
    trained_on = [data_set(path, split=made.data.split) for path in made.data.paths]
    run = Run(workdir, "0123456789abcdef", listed, trained_on=trained_on)
    run.write()
    saved = checkpoint.Checkpoints(workdir, run=run, config=run.digest(""), keep=1)
    saved.save(step, state)
    assert saved.settle() is None
    saved.close()
    return made
