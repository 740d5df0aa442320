"""Reports: an encoder reads a study's films, and a T5 decoder writes what they show.

Teacher forcing as in Raffel et al., T5 (arXiv 1910.10683, section 2), with the label smoothing of
Szegedy et al. (arXiv 1512.00567, section 7). A row is `start, prefix, text` without a gap, and the
prefix (indication, section, language) is read but not learnt. The loss is a mean over the tokens of
the global batch, so long reports count for more than short ones, as perplexity counts them. A study
without a film gives the decoder no memory, and so trains it as a language model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from xmae_jax import metrics, rng
from xmae_jax.attention import Backend
from xmae_jax.heads.report import Context, ReportHead, ReportHeadConfig
from xmae_jax.models.generate import GenerateConfig, Generated, generate
from xmae_jax.models.layers import Compute, Remat
from xmae_jax.models.t5 import PAD
from xmae_jax.models.vit import Encoder, EncoderConfig
from xmae_jax.objectives.base import ModuleObjective, grid_of
from xmae_jax.objectives.mae import normalise
from xmae_jax.typing import Batch, LossOut, Params, Prepared


class Reporter(nnx.Module):
    """An encoder that sees all patches of each film, and a head that writes."""

    def __init__(self, config: Report, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        compute = Compute(dtype, config.attention, config.remat)
        self.encoder = Encoder(config.encoder, compute=compute, rngs=rngs)
        self.head = ReportHead(config.head, width=config.encoder.width, compute=compute, rngs=rngs)

    def context(self, batch: Batch) -> Context:
        """Encode the films of each study; one that is not there is blank, and not valid."""
        there = batch["has_image"]  # b s
        b, s = there.shape
        if s == 0:
            return self.head.nothing(b)
        image = jnp.where(there[:, :, None, None, None], batch["image"], 0)
        with jax.named_scope("encoder"):
            films = self.encoder(normalise(image.reshape(b * s, *image.shape[2:])))
        patches = films.patches.reshape(b, s, *films.patches.shape[1:])  # b s n d
        valid = batch["valid"] & there[:, :, None]
        return self.head.context(patches, valid=valid, views=batch["view_ids"])


def lengths(ids: Int[Array, "b t"]) -> Int[Array, " b"]:
    """Count the tokens of each row."""
    return (ids != PAD).sum(axis=1)


def joined(
    prefix: Int[Array, "b p"], text: Int[Array, "b t"]
) -> tuple[Int[Array, "b pt"], Bool[Array, "b pt"]]:
    """Put each row's text right behind its prefix; return (ids, which of them are text)."""
    both = jnp.concatenate([prefix, text], axis=1)
    first, length = lengths(prefix)[:, None], lengths(text)[:, None]  # b 1
    place = jnp.arange(both.shape[1])[None]  # 1 pt
    source = jnp.where(place < first, place, place - first + prefix.shape[1])
    ids = jnp.take_along_axis(both, jnp.minimum(source, both.shape[1] - 1), axis=1)
    ids = jnp.where(place < first + length, ids, PAD)
    return ids, (place >= first) & (place < first + length)


@dataclasses.dataclass(frozen=True)
class Report(ModuleObjective):
    """The objective; its fields are the `objective` part of a config."""

    image_size: int
    compute_dtype: Literal["float32", "bfloat16"]
    attention: Backend
    remat: Remat
    encoder: EncoderConfig
    head: ReportHeadConfig
    decoder_from: str | None
    """Where the decoder's first parameters come from: a run of this objective, or public T5
    weights; None leaves it to `init_from`, or to chance."""
    label_smoothing: float
    """Share of the target that is spread evenly over the vocabulary."""
    generate: GenerateConfig
    ema_decay: float | None

    view = "report"
    module = Reporter

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        _ = self.grid

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width of one film."""
        return grid_of(self.image_size, self.encoder.patch_size)

    def prepare(self, batch: Batch, rng_key: Key[Array, ""], step: Array) -> Prepared:
        """Lay out each row's tokens, and make the keys of dropout."""
        ids, learnt = joined(batch["prefix"], batch["text"])
        learnt &= (batch["mask"] & batch["has_text"])[:, None]
        more = {"ids": ids, "learnt": learnt, "keys": rng.row_keys(rng_key, len(ids))}
        return Prepared({**batch, **more}, {"report": learnt.sum().astype(jnp.float32)})

    def loss(
        self,
        params: Params,
        frozen: Params,
        extra: Params,
        batch: Batch,
        rng_key: Array,
        step: Array,
    ) -> LossOut:
        """Sum the smoothed cross-entropy of the texts' tokens."""
        model = self.model(params, frozen)
        log_p = _log_probability(model, batch, keys=batch["keys"])  # b t v
        nll = -jnp.take_along_axis(log_p, batch["ids"][..., None], axis=-1)[..., 0]
        even = -log_p.mean(axis=-1)
        error = (1.0 - self.label_smoothing) * nll + self.label_smoothing * even
        right = (log_p.argmax(axis=-1) == batch["ids"]).astype(jnp.float32)
        return LossOut(
            totals={"report": jnp.where(batch["learnt"], error, 0.0).sum()},
            metrics={
                "nll": metrics.mean_of(nll, batch["learnt"]),
                "token_accuracy": metrics.mean_of(right, batch["learnt"]),
            },
            extra=extra,
        )

    def likelihood(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, rng_key: Array
    ) -> dict[str, Array]:
        """Return `nll` float32 [b], summed over the `tokens` int32 [b] of each text, in nats.

        `token_nll` float32 [b t] has that of each token of `text`, 0 behind its end.
        """
        rows = self.prepare(batch, rng_key, jnp.zeros((), jnp.int32)).batch
        log_p = _log_probability(self.averaged(params, frozen, extra), rows, keys=None)
        nll = -jnp.take_along_axis(log_p, rows["ids"][..., None], axis=-1)[..., 0]
        nll = jnp.where(rows["learnt"], nll, 0.0)
        place = jnp.arange(batch["text"].shape[1])[None] + lengths(batch["prefix"])[:, None]
        return {
            "nll": nll.sum(axis=1),
            "tokens": rows["learnt"].sum(axis=1),
            "token_nll": jnp.take_along_axis(nll, place, axis=1),
        }

    def write(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, rng_key: Array
    ) -> dict[str, Array]:
        """Return what the model writes: `written` int32 [b t], padded behind its end."""
        made, _ = self._generate(params, frozen, extra, batch, attention=False)
        return {"written": made.tokens}

    def explain(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, rng_key: Array
    ) -> dict[str, Array]:
        """Return what `write` does, each token's `log_prob`, and what it read of the films.

        log_prob: float32 [b t], 0 behind the end. read: float32 [b t s n], the cross-attention of
        the step that chose a token, a mean over heads and layers, on patches; by way of the
        resampler where there is one.
        """
        made, context = self._generate(params, frozen, extra, batch, attention=True)
        read = made.attention
        assert read is not None
        if context.read is not None:
            read = jnp.einsum("btm,bmn->btn", read, context.read.astype(read.dtype))
        read = read.reshape(*read.shape[:2], *batch["valid"].shape[1:])
        return {"written": made.tokens, "log_prob": made.log_prob, "read": read}

    def _generate(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, *, attention: bool
    ) -> tuple[Generated, Context]:
        model = self.averaged(params, frozen, extra)
        context = model.context(batch)
        with jax.named_scope("decoder"):
            made = generate(
                model.head.decoder,
                model.head.decoder.memory(context.tokens),
                memory_valid=context.valid,
                prefix=batch["prefix"],
                prefix_length=lengths(batch["prefix"]),
                config=self.generate,
                attention=attention,
            )
        return made, context

    def predict_fns(self) -> dict[str, Callable[..., dict[str, Array]]]:
        """Return `likelihood`, of the texts that are there, `write` and `explain`."""
        return {"likelihood": self.likelihood, "write": self.write, "explain": self.explain}


def _log_probability(
    model: Any, batch: Batch, *, keys: Key[Array, " b"] | None
) -> Float[Array, "b t v"]:
    """Return log probabilities of each token given those before it, float32."""
    context = model.context(batch)
    ids = batch["ids"]
    shifted = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)
    with jax.named_scope("decoder"):
        memory = model.head.decoder.memory(context.tokens)
        logits = model.head.decoder(shifted, memory, memory_valid=context.valid, keys=keys)
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
