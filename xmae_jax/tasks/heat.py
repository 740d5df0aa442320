"""Where a model looked for a finding: a number, not below 0, for each patch of a film.

"attention": what the head's query for the finding reads, a mean over its heads, as a share of what
all patches of the film get; 1 is even.
"rollout": attention rollout (Abnar and Zuidema, arXiv 2005.00928) through all blocks, from that map
or, for a linear head, from the tokens that it pools; 1 is even among the patches of the film, what
goes to CLS, registers and padding is left out. It says less of the finding than of the film: for a
linear head it is one map for all findings, and of "mean_max" it knows the mean alone.
"gradient": tokens, less the film's mean token, times the logit's gradient at them, summed over the
width, the negative part cut off: with a linear head over mean patches, by how much a patch raises
the logit more than the film's mean patch does, times the patches. Grad-CAM (Selvaraju et al., arXiv
1610.02391) takes no mean off, and shows nothing where each patch lowers the logit. The tokens are
those that the head reads. A head that pools CLS passes no gradient to these, so there they are what
enters the blocks that it reads.

Padding has 0 in each of them, so that scales are the film's own.

None of it is proof of a reason: a map shows what the model used, not what is there. Behind a hybrid
stem a patch stands for what its token has read, which reaches several patches further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmae_jax.heads.linear import LinearConfig
from xmae_jax.heads.query import QueryConfig
from xmae_jax.models.layers import block_of, rollout
from xmae_jax.objectives.mae import normalise
from xmae_jax.objectives.supervised import Classifier, Supervised
from xmae_jax.tasks import overlay
from xmae_jax.typing import Batch, Features, Params

Method = Literal["attention", "rollout", "gradient"]

_EVEN = dict(base=1.0, least=1.5)
SCALES = {
    "attention": overlay.Scale("attention of the head; 1 is even", **_EVEN),
    "rollout": overlay.Scale("attention rollout; 1 is even", **_EVEN),
    "gradient": overlay.Scale("gradient: what raises the logit above the film's mean"),
}


def default_method(objective: Supervised) -> Method:
    """Return what tells findings apart: the head's map if it has one for each, else gradients."""
    return "gradient" if shared_by(objective, "attention") > 1 else "attention"


def shared_by(objective: Supervised, method: Method) -> int:
    """Return how many findings have one map together, at most: those that a query answers for."""
    if method == "gradient":
        return 1
    findings = len(objective.findings)
    queries = 1
    if isinstance(objective.head, QueryConfig):
        queries = objective.head.groups or findings
    return -(-findings // queries)


def heat_of(objective: Supervised, method: Method) -> Callable[..., dict[str, Array]]:
    """Return `fn(params, frozen, extra, batch, key)`; ValueError if the head has no such map.

    The batch is the view's, and `chosen` int32 [b m], the findings to be mapped; the result has
    `heat` float32 [b m n].
    """
    linear = isinstance(objective.head, LinearConfig)
    if method == "attention" and linear:
        raise ValueError("'attention': a linear head has none; take 'rollout' or 'gradient'")
    fn = _gradient if method == "gradient" else _rollout if method == "rollout" else _attention

    def heat(
        params: Params, frozen: Params, extra: Params, batch: Batch, key: Array
    ) -> dict[str, Array]:
        model = objective.averaged(params, frozen, extra)
        return {"heat": fn(model, batch, batch["chosen"])}

    return heat


def _attention(model: Classifier, batch: Batch, chosen: Int[Array, "b m"]) -> Float[Array, "b m n"]:
    return _of_even(_head_map(model, model.features(batch), chosen), batch["valid"])


def _head_map(
    model: Classifier, features: Features, chosen: Int[Array, "b m"]
) -> Float[Array, "b m n"]:
    """Return what the head reads for the chosen findings; rows sum to 1."""
    weights = model.head(features)["attention"].mean(axis=1)  # b c n
    return jnp.take_along_axis(weights, chosen[:, :, None], axis=1)


def _of_even(weights: Float[Array, "b m n"], valid: Bool[Array, "b n"]) -> Float[Array, "b m n"]:
    """Divide weights by their mean over the patches of the film; 0 elsewhere."""
    kept = weights.astype(jnp.float32) * valid[:, None]
    mean = kept.sum(axis=2, keepdims=True) / jnp.maximum(valid.sum(axis=1), 1)[:, None, None]
    return kept / jnp.maximum(mean, jnp.finfo(jnp.float32).tiny)


def _rollout(model: Classifier, batch: Batch, chosen: Int[Array, "b m"]) -> Float[Array, "b m n"]:
    stream = model.encoder.stream(normalise(batch["image"]))  # l+1 b t d
    head: Any = model.head
    valid, config = batch["valid"], head.config
    if isinstance(config, LinearConfig):
        share = valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
        of_cls = {"cls": 1.0, "mean": 0.0, "cls_mean": 0.5, "mean_max": 0.0}[config.pool]
        weights, cls = (1 - of_cls) * share, jnp.full((len(valid), 1), of_cls)
        rows = jnp.concatenate([cls, weights], axis=1)[:, None]
        rows = jnp.repeat(rows, chosen.shape[1], axis=1)  # b m 1+n
    else:
        features = _features(model, stream[-model.layers :], batch)
        read = _head_map(model, features, chosen)
        rows = jnp.pad(read, ((0, 0), (0, 0), (1, 0)))
    registers = stream.shape[2] - rows.shape[2]
    rows = jnp.concatenate(
        [rows[:, :, :1], jnp.zeros((*rows.shape[:2], registers)), rows[:, :, 1:]], axis=2
    )
    rows = rollout(model.encoder.blocks, stream[:-1], rows)
    return _of_even(rows[:, :, 1 + registers :], valid)


def _features(model: Classifier, outputs: Float[Array, "s b t d"], batch: Batch) -> Features:
    """Make the features of what the last blocks gave."""
    n = batch["valid"].shape[1]
    ids = jnp.broadcast_to(jnp.arange(n)[None], (len(batch["valid"]), n))
    side = model.encoder.config.patch_size
    grid = (batch["image"].shape[1] // side, batch["image"].shape[2] // side)
    return model.encoder.features(outputs, ids, grid)._replace(valid=batch["valid"])


def _gradient(model: Classifier, batch: Batch, chosen: Int[Array, "b m"]) -> Float[Array, "b m n"]:
    head: Any = model.head
    if getattr(head.config, "pool", None) in ("cls", "cls_mean"):
        stream = model.encoder.stream(normalise(batch["image"]))
        depth, layers = model.encoder.config.depth, model.layers

        def logits(tokens: tuple[Array]) -> Array:
            (x,), outputs = tokens, []
            for index in range(depth - layers, depth):
                x = block_of(model.encoder.blocks, index)(x)
                outputs.append(x)
            return model.head(_features(model, jnp.stack(outputs), batch))["logits"]

        others = stream.shape[2] - batch["valid"].shape[1]  # CLS and registers
        seen = jnp.pad(batch["valid"], ((0, 0), (others, 0)))
        return _shares(logits, (stream[depth - layers],), chosen, seen)[:, :, others:]
    features = model.features(batch)
    cls, patches = zip(*features.layers, strict=True)

    def from_patches(patches: tuple[Array, ...]) -> Array:
        layers = tuple(zip(cls, patches, strict=True))
        return model.head(features._replace(layers=layers))["logits"]

    return _shares(from_patches, patches, chosen, batch["valid"])


def _shares(
    logits: Callable[[Any], Array],
    tokens: tuple[Array, ...],
    chosen: Int[Array, "b m"],
    seen: Bool[Array, "b k"],
) -> Float[Array, "b m k"]:
    """Multiply tokens [b k d], less the mean of those seen, by the chosen logits' gradients.

    Those not seen, which may have gradients too by way of attention, get 0.
    """
    found, pull = jax.vjp(logits, tokens)
    wanted = jax.nn.one_hot(chosen.T, found.shape[1], dtype=found.dtype)  # m b c
    (gradients,) = jax.vmap(pull)(wanted)
    weights = seen / jnp.maximum(seen.sum(axis=1, keepdims=True), 1)  # b k
    parts = (
        jnp.einsum("mbkd,bkd->bmk", g, t - jnp.einsum("bk,bkd->bd", weights, t)[:, None])
        for g, t in zip(gradients, (t.astype(jnp.float32) for t in tokens), strict=True)
    )
    return jax.nn.relu(sum(parts, start=jnp.zeros(())[None, None, None])) * seen[:, None]
