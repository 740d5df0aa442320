"""Features and heads that the tests of heads share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmae_jax.heads import make_head
from xmae_jax.typing import Features

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
WIDTH, GRID = 12, (2, 4)


def features_of(rows: int = 3, *, layers: int = 3, valid=None, seed: int = 0) -> Features:
    """Draw what an encoder of width 12 gives of a grid of 2 x 4 patches."""
    draw = np.random.default_rng(seed)
    k = GRID[0] * GRID[1]
    blocks = tuple(
        (
            jnp.asarray(draw.normal(size=(rows, WIDTH)), jnp.float32),
            jnp.asarray(draw.normal(size=(rows, k, WIDTH)), jnp.float32),
        )
        for _ in range(layers)
    )
    ids = jnp.broadcast_to(jnp.arange(k)[None], (rows, k))
    valid = None if valid is None else jnp.asarray(valid)
    return Features(*blocks[-1], ids=ids, grid=GRID, layers=blocks, valid=valid)


def head_of(config, findings: int, *, dtype=FLOAT32, seed: int = 0, **more) -> nnx.Module:
    """Make a head and move every parameter, so that no bias is 0 and no scale 1."""
    rngs = nnx.Rngs(params=jax.random.key(seed))
    head = make_head(config, width=WIDTH, findings=findings, dtype=dtype, rngs=rngs, **more)
    moved = {
        name: value + 0.1 * np.random.default_rng(i).normal(size=value.shape).astype(np.float32)
        for i, (name, value) in enumerate(sorted(flat(params_of(head)).items()))
    }
    nnx.update(head, nested(moved))
    return head


def params_of(head: nnx.Module) -> dict:
    """Return the parameters as a nested dict."""
    return nnx.to_pure_dict(nnx.state(head, nnx.Param))


def flat(tree: dict, prefix: str = "") -> dict:
    """Return path -> array."""
    out = {}
    for name, value in tree.items():
        more = isinstance(value, dict)
        out |= flat(value, f"{prefix}{name}/") if more else {prefix + name: value}
    return out


def nested(paths: dict) -> dict:
    """Undo `flat`."""
    tree: dict = {}
    for path, value in paths.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return tree


def as_function(head: nnx.Module):
    """Return (fn(params, features, keys), params): what an objective makes of a head, compiled."""
    graph, state = nnx.split(head, nnx.Param)

    @jax.jit
    def apply(params, features, keys=None):
        return nnx.merge(graph, params)(features, keys=keys)

    return apply, nnx.to_pure_dict(state)


def spoiled(features: Features) -> Features:
    """Put NaN into every patch that is not valid."""
    bad = ~features.valid[:, :, None]
    layers = tuple((cls, jnp.where(bad, jnp.nan, x)) for cls, x in features.layers)
    return features._replace(patches=layers[-1][1], layers=layers)


def rows_of(features: Features, order: np.ndarray) -> Features:
    """Take some rows, in that order."""
    layers = tuple((cls[order], patches[order]) for cls, patches in features.layers)
    return features._replace(
        cls=layers[-1][0], patches=layers[-1][1], ids=features.ids[order], layers=layers
    )
