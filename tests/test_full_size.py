"""The run that this code is for, at its full size on a CPU: minutes, and gigabytes."""

import dataclasses
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_1280
from tests.runs import finish, lines
from xmae_jax import rng
from xmae_jax.config import objective_of, resolve
from xmae_jax.data.records import Records
from xmae_jax.digest import flatten
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.tasks.film import view_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def films(cxr, tmp_path_factory):
    """Put real films into shards of 1280 px."""
    from data_prep import build

    folder = tmp_path_factory.mktemp("films")
    arguments = ["--input", str(cxr), "--output", str(folder / "shards"), "--size", "1280"]
    assert build.main([*arguments, "--key", str(folder / "key")]) == 0
    return folder / "shards"


def test_one_step_at_1280_px_fits_into_14_gib(films, tmp_path):
    code, out = finish(
        [
            sys.executable, "-m", "xmae_jax.main", "--config=configs/pretrain_1280.py",
            f"--config.data.path={films}", f"--workdir={tmp_path}/run", "--config.batch_size=1",
            "--config.total_steps=1", "--config.data.eval_split=None", "--config.data.threads=1",
        ],
        timeout=1800,
    )  # fmt: skip
    assert code == 0, out
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"peak resident memory {peak / 2**30:.1f} GiB")
    assert peak <= 14 * 2**30
    (line,) = lines(tmp_path / "run")
    assert line["skipped"] == 0 and 0.5 < line["training_loss"] < 4


def test_blocks_and_recomputation_at_640_px_give_plain_attention_s_gradient(films):
    config = pretrain_1280.get_config()
    config.image_size, config.objective.mask.keep, config.compute_dtype = 640, 184, "float32"
    config = resolve(config)

    def gradient(**changes):
        mae = objective_of(dataclasses.replace(config, **changes), OBJECTIVES)
        record = Records(films, "train")[0]
        film = view_of(config, mae, train=False)(record, np.random.default_rng(0))
        batch = {name: jnp.asarray(x)[None] for name, x in film.items()}
        batch |= {"mask": jnp.ones(1, bool), "id": jnp.zeros((1, 2), jnp.int32)}
        key, step = rng.key(0, "train"), jnp.zeros((), jnp.int32)

        def loss(params):
            rows = mae.prepare(batch, key, step)
            total = mae.loss(params, {}, {}, rows.batch, key, step).totals["reconstruction"]
            return total / rows.weights["reconstruction"]

        params = jax.jit(mae.init)(rng.key(0, "init"))
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
        return float(value), {n: np.asarray(g) for n, g in flatten(grads).items()}

    want_loss, want = gradient(attention="plain", remat="none")
    loss, grads = gradient(attention="chunked", remat="full")
    worst = max(np.abs(grads[n] - want[n]).max() / np.abs(want[n]).max() for n in want)
    print(
        f"loss {loss} and {want_loss}; largest difference of a gradient {worst:.1e} of its largest"
    )
    assert abs(loss - want_loss) <= 1e-4 * want_loss
    assert worst <= 1e-4
