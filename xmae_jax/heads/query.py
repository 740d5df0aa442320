"""Queries that read the patches: GLoRI and ML-Decoder are settings of it.

ML-Decoder (Ridnik et al., arXiv 2111.12933, section 3): one decoder layer without self-attention,
over fixed random queries; with fewer queries than findings each answers for several ("groups").
GLoRI (Yang et al., CheXFound, arXiv 2502.05142): a query for each finding, patches of the last four
blocks joined, and the CLS tokens put before each query's answer ("cls_skip"). Both stand as in
their released code: post-norm, LayerNorm epsilon 1e-5, ReLU, PyTorch's initialisation, and a query
added to a dropped-out copy of itself. Differs in that text queries have a readout for each finding,
where ML-Decoder shares one, to name findings that it was not trained on.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from xmae_jax.heads.parts import attention_map, tokens
from xmae_jax.heads.text import read_embeddings
from xmae_jax.models.layers import dropout, layer_norm, torch_linear, torch_uniform
from xmae_jax.typing import Features

_Float32 = jnp.dtype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """Settings of the query decoder; GLoRI's and ML-Decoder's are in `configs/common.py`."""

    kind: Literal["query"]
    queries: Literal["fixed", "learned", "text"]
    """"fixed": N(0, 1), never trained; "text": of the findings' names, see `text`."""
    text: str | None
    """A safetensors file of embeddings, see `heads/text.py`; it stays where it is while the run is
    in use."""
    groups: int | None
    """Queries at most; each answers for ceil(findings / groups). None has one for each finding."""
    layers: int
    """How many of the last blocks are read, joined along the width."""
    cls_skip: bool
    """Put the CLS tokens of those blocks before each query's answer."""
    width: int
    heads: int
    hidden: int
    """Width of the MLP between its two maps."""
    dropout: float

    def __post_init__(self) -> None:
        if min(self.layers, self.hidden) < 1 or (self.groups is not None and self.groups < 1):
            raise ValueError("layers, hidden and groups must be positive")
        if min(self.width, self.heads) < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if (self.queries == "text") != (self.text is not None):
            raise ValueError("queries 'text' and the file in text belong together")
        if self.text is not None and self.groups is not None:
            raise ValueError("queries 'text' has one for each finding: groups is to be None")


class QueryAttention(nnx.Module):
    """Multi-head attention of queries to a memory of the same width; the map is returned too."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        # PyTorch draws q, k and v as one matrix [3 d, d], Xavier-uniform: +-sqrt(6 / (4 d)).
        uniform = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform")

        def part() -> nnx.LinearGeneral:
            split = (heads, width // heads)
            return nnx.LinearGeneral(width, split, kernel_init=uniform, dtype=dtype, rngs=rngs)

        self.dtype = dtype
        self.q, self.k, self.v = part(), part(), part()
        self.out = nnx.LinearGeneral(
            width, width, kernel_init=torch_uniform(width), dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "b q d"],
        memory: Float[Array, "b k d"],
        valid: Array | None,
        keys: Key[Array, " b"] | None,
        *,
        rate: float,
        site: int,
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b heads q k"]]:
        """Return what the queries read, and where: the map before its dropout."""
        weights = attention_map(self.q(x), self.k(memory), valid)  # b heads q k
        kept = dropout(weights, keys, rate=rate, site=site).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", kept, self.v(memory))
        return self.out(y.reshape(x.shape)), weights


class GroupReadout(nnx.Module):
    """Logits of each query's findings from its answer alone; a bias for each finding."""

    def __init__(self, queries: int, inputs: int, findings: int, *, rngs: nnx.Rngs):
        factor = -(-findings // queries)
        # PyTorch's xavier_normal of a tensor [q d f] takes d f for its inputs and q f for outputs.
        std = (2 / ((inputs + queries) * factor)) ** 0.5
        shape = (queries, inputs, factor)
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(findings))

    def __call__(self, h: Float[Array, "b q d"]) -> Float[Array, "b c"]:
        """Return float32 logits; places beyond the last finding are cut off."""
        out = jnp.einsum("bqd,qdf->bqf", h, self.kernel[...])
        return out.reshape(h.shape[0], -1)[:, : self.bias.shape[0]] + self.bias[...][None]


class QueryHead(nnx.Module):
    """Read the patches by queries: `t = q + drop(q)`, norm, attention, norm, MLP, norm, readout."""

    def __init__(
        self,
        config: QueryConfig,
        *,
        width: int,
        findings: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        names: tuple[str, ...],
    ):
        c = config
        self.config, self.findings = c, findings
        inputs, count = c.layers * width, min(c.groups or findings, findings)
        self.memory = torch_linear(inputs, c.width, dtype=dtype, rngs=rngs)
        # `queries` are fixed, and `optim` leaves what has that name as it is.
        if c.text is not None:
            if len(names) != findings:
                raise ValueError(f"queries 'text' of {findings} findings need as many names")
            table = jnp.asarray(read_embeddings(c.text, names))
            self.queries = nnx.Param(table)
            self.project = torch_linear(table.shape[1], c.width, dtype=_Float32, rngs=rngs)
        elif c.queries == "fixed":
            self.queries = nnx.Param(jax.random.normal(rngs.params(), (count, c.width)))
        else:
            self.learned_queries = nnx.Param(jax.random.normal(rngs.params(), (count, c.width)))
        self.attention = QueryAttention(c.width, c.heads, dtype=dtype, rngs=rngs)
        self.up = torch_linear(c.width, c.hidden, dtype=dtype, rngs=rngs)
        self.down = torch_linear(c.hidden, c.width, dtype=dtype, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = (
            layer_norm(c.width, epsilon=1e-5, dtype=_Float32, rngs=rngs) for _ in range(3)
        )
        self.readout = GroupReadout(count, c.width + inputs * c.cls_skip, findings, rngs=rngs)

    def _queries(self) -> Float[Array, "q d"]:
        if self.config.queries == "learned":
            return self.learned_queries[...]
        queries = jax.lax.stop_gradient(self.queries[...])
        # ML-Decoder's map of word vectors.
        return jax.nn.relu(self.project(queries)) if self.config.queries == "text" else queries

    def __call__(
        self, features: Features, *, keys: Key[Array, " b"] | None = None
    ) -> dict[str, Float[Array, "b ..."]]:
        """Return `logits` [b c] and `attention` [b heads c k]: each finding's query's."""
        c = self.config
        cls, patches = tokens(features, layers=c.layers)
        memory = jax.nn.relu(self.memory(patches))  # b k d
        queries = self._queries()  # q d
        t = jnp.broadcast_to(queries[None], (memory.shape[0], *queries.shape))

        def drop(x: Array, site: int) -> Array:
            return dropout(x, keys, rate=c.dropout, site=site)

        t = self.norm1(t + drop(t, 0))  # b q d
        read, weights = self.attention(t, memory, features.valid, keys, rate=c.dropout, site=1)
        t = self.norm2(t + drop(read, 2))
        hidden = drop(jax.nn.relu(self.up(t)), 3)
        t = self.norm3(t + drop(self.down(hidden), 4))
        if c.cls_skip:
            skip = jnp.broadcast_to(cls.astype(_Float32)[:, None], (*t.shape[:2], cls.shape[-1]))
            t = jnp.concatenate([skip, t], axis=-1)
        factor = self.readout.kernel.shape[-1]
        attention = jnp.repeat(weights, factor, axis=2)[:, :, : self.findings]
        return {"logits": self.readout(t), "attention": attention}
