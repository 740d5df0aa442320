"""T5 decoder: writes tokens after tokens, and reads another sequence by cross-attention.

Raffel et al., Exploring the Limits of Transfer Learning (arXiv 1910.10683, section 2.1), and its
v1.1 with a gated MLP (Shazeer, arXiv 2002.05202). Differs from the reference in that attention
weights are not dropped, whose draws would take longer than the products; and in an untied output's
initial deviation, width**-0.5.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from xmae_jax.models.layers import Compute, checkpointed, dropout, stack
from xmae_jax.sharding import constrain

PAD, END = 0, 1
"""T5's ids; that of padding starts a text, too."""


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 decoder."""

    vocab: int
    width: int
    depth: int
    heads: int
    head_width: int
    """heads * head_width need not be the width."""
    hidden: int
    """Of the MLP."""
    gated: bool
    """v1.1: GELU (by tanh) of one linear map times another; else ReLU of one."""
    tied: bool
    """Whether the output map is the embedding, of hidden states times width**-0.5."""
    buckets: int = 32
    """Of relative positions; half of them are for one distance each."""
    max_distance: int = 128
    """From which on distances share the last bucket."""
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.vocab, self.width, self.depth, self.heads, self.head_width, self.hidden)
        if min(sizes) < 1:
            raise ValueError("vocab, width, depth, heads, head_width and hidden must be positive")
        if self.buckets < 2 or self.max_distance <= self.buckets // 2:
            raise ValueError(f"{self.buckets} buckets do not reach {self.max_distance} tokens")
        if not 0 <= self.dropout < 1 or not self.norm_eps > 0:
            raise ValueError("dropout must be in [0, 1), and norm_eps positive")


class Memory(NamedTuple):
    """Keys and values of every layer's cross-attention, made once for a batch.

    Keys are turned, since CPUs multiply by them many times faster so.
    """

    k: Float[Array, "l b heads hd m"]
    v: Float[Array, "l b heads m hd"]


def bucket(distances: Int[np.ndarray, "*n"], config: T5Config) -> Int[np.ndarray, "*n"]:
    """Return the bucket of how many tokens back a key lies, as T5 counts them; float32."""
    exact = config.buckets // 2
    far = np.log(np.maximum(distances, exact).astype(np.float32) / np.float32(exact))
    far = far / math.log(config.max_distance / exact) * (config.buckets - exact)
    far = np.minimum(exact + far.astype(np.int32), config.buckets - 1)
    return np.where(distances < exact, np.maximum(distances, 0), far).astype(np.int32)


def attend(
    q: Float[Array, "b heads n hd"],
    k: Float[Array, "b heads hd m"],
    v: Float[Array, "b heads m hd"],
    *,
    bias: Float[Array, "heads _ m"] | None = None,
    seen: Bool[Array, "_ _ _ m"] | None = None,
) -> tuple[Float[Array, "b n e"], Float[Array, "b heads n m"]]:
    """Attend without a scale, as T5 does; return what was read and the map.

    bias: added to the scores. seen: which keys a query may read, to be broadcast to the map; a
    query that may read none reads zeros. Unlike `xmae_jax.attention` this holds the map.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bhnd,bhdm->bhnm", q, k, preferred_element_type=wide)
    if bias is not None:
        scores = scores + bias.astype(wide)[None]
    if seen is not None:
        scores = jnp.where(seen, scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if seen is not None:
        weights = jnp.where(seen, weights, 0)
    out = jnp.einsum(
        "bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=wide
    ).astype(q.dtype)
    out = out.swapaxes(1, 2)  # b n heads hd
    return out.reshape(*out.shape[:2], -1), weights


def _linear(
    inputs: int,
    outputs: int | tuple[int, ...],
    *,
    compute: Compute,
    rngs: nnx.Rngs,
    scale: Any = 1.0,
) -> nnx.LinearGeneral:
    """Make a linear map without a bias, of normal deviation inputs**-0.5 times `scale`."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        drawn = jax.random.normal(key, shape, dtype) * inputs**-0.5
        return (drawn.reshape(inputs, *np.atleast_1d(outputs)) * scale).reshape(shape)

    return nnx.LinearGeneral(
        inputs, outputs, use_bias=False, kernel_init=init, dtype=compute.dtype, rngs=rngs
    )


def _norm(config: T5Config, *, compute: Compute, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.width, epsilon=config.norm_eps, dtype=compute.dtype, rngs=rngs)


class SelfAttention(nnx.Module):
    """Maps of self-attention; the kernel of qkv is [d, 3, heads, hd]."""

    def __init__(self, config: T5Config, *, compute: Compute, rngs: nnx.Rngs):
        c = config
        made: Any = dict(compute=compute, rngs=rngs)
        scale = np.array([c.head_width**-0.5, 1, 1], np.float32)[None, :, None, None]
        self.qkv = _linear(c.width, (3, c.heads, c.head_width), scale=scale, **made)
        self.out = _linear(c.heads * c.head_width, c.width, **made)

    def project(self, x: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Return queries [b heads n hd], keys [b heads hd n] and values [b heads n hd]."""
        qkv = self.qkv(x)  # b n 3 heads hd
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
        return q, k.swapaxes(2, 3), v


class CrossAttention(nnx.Module):
    """Maps of attention to another sequence; the kernel of kv is [d, 2, heads, hd]."""

    def __init__(self, config: T5Config, *, compute: Compute, rngs: nnx.Rngs):
        c = config
        made: Any = dict(compute=compute, rngs=rngs)
        self.q = _linear(c.width, (c.heads, c.head_width), scale=c.head_width**-0.5, **made)
        self.kv = _linear(c.width, (2, c.heads, c.head_width), **made)
        self.out = _linear(c.heads * c.head_width, c.width, **made)

    def memory(self, context: Float[Array, "b m d"]) -> Memory:
        """Return this layer's keys and values, without the axis l."""
        kv = self.kv(context)  # b m 2 heads hd
        return Memory(kv[:, :, 0].transpose(0, 2, 3, 1), kv[:, :, 1].transpose(0, 2, 1, 3))


class Mlp(nnx.Module):
    """Two linear maps with a gate or a ReLU between them."""

    def __init__(self, config: T5Config, *, compute: Compute, rngs: nnx.Rngs):
        c = config
        made: Any = dict(compute=compute, rngs=rngs)
        self.gated = c.gated
        if c.gated:
            self.gate_up = _linear(c.width, (2, c.hidden), **made)
        else:
            self.up = _linear(c.width, c.hidden, **made)
        self.down = _linear(c.hidden, c.width, **made)

    def hidden(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """Return the hidden units."""
        if not self.gated:
            return jax.nn.relu(constrain(self.up(x), "rows", None, "hidden"))
        hidden = constrain(self.gate_up(x), "rows", None, None, "hidden")  # b n 2 e
        return jax.nn.gelu(hidden[:, :, 0], approximate=True) * hidden[:, :, 1]


class Block(nnx.Module):
    """Self-attention, cross-attention and MLP, each behind a norm and around a residual."""

    def __init__(self, config: T5Config, *, compute: Compute, rngs: nnx.Rngs):
        made: Any = dict(compute=compute, rngs=rngs)
        self.norm1 = _norm(config, **made)
        self.attention = SelfAttention(config, **made)
        self.norm2 = _norm(config, **made)
        self.cross = CrossAttention(config, **made)
        self.norm3 = _norm(config, **made)
        self.mlp = Mlp(config, **made)
        self.rate = config.dropout

    def __call__(
        self,
        x: Float[Array, "b n d"],
        memory: Memory,
        *,
        read: Any,
        memory_valid: Bool[Array, "b m"] | None,
        keys: Key[Array, " b"] | None = None,
        layer: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "b n d"], Any, Float[Array, "b heads n m"]]:
        """Run the block; return also what `read` gave beside, and the map over the memory.

        read: fn(q, k, v) -> (what self-attention read, anything); memory: of this layer.
        """
        drop = partial(self._drop, keys, layer)
        out, beside = read(*self.attention.project(self.norm1(x)))
        x = x + drop(self.attention.out(out), 0)
        q = self.cross.q(self.norm2(x)).swapaxes(1, 2)  # b heads n hd
        seen = None if memory_valid is None else memory_valid[:, None, None]
        out, weights = attend(q, memory.k, memory.v, seen=seen)
        x = x + drop(self.cross.out(out), 1)
        hidden = drop(self.mlp.hidden(self.norm3(x)), 2)
        return x + drop(self.mlp.down(hidden), 3), beside, weights

    def _drop(
        self, keys: Array | None, layer: int | Array, x: Float[Array, "b n d"], place: int
    ) -> Float[Array, "b n d"]:
        # The decoder itself has sites 0 and 1.
        return dropout(x, keys, rate=self.rate, site=2 + 4 * layer + place)


class T5Decoder(nnx.Module):
    """Token embedding, blocks, a final norm and the map to the vocabulary."""

    def __init__(self, config: T5Config, *, compute: Compute, rngs: nnx.Rngs):
        c = config
        made: Any = dict(compute=compute, rngs=rngs)
        self.config, self.compute = config, compute
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (c.vocab, c.width)))
        # One table for all layers, as the first layer's is in T5.
        bias = jax.random.normal(rngs.params(), (c.buckets, c.heads)) * c.width**-0.5
        self.relative_bias = nnx.Param(bias)
        self.blocks = stack(lambda rngs: Block(c, compute=compute, rngs=rngs), c.depth, rngs=rngs)
        self.norm = _norm(c, **made)
        if not c.tied:
            self.out = _linear(c.width, c.vocab, **made)

    def memory(self, context: Float[Array, "b m d"]) -> Memory:
        """Make every layer's keys and values of a context, which is to be finite everywhere."""
        graph, stacked = nnx.split(self.blocks)

        def one(_: None, params: Any) -> tuple[None, Memory]:
            block: Any = nnx.merge(graph, params)
            made = block.cross.memory(context)
            return None, Memory(*(constrain(x, "rows", "heads", None, None) for x in made))

        return jax.lax.scan(one, None, stacked)[1]

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Look tokens up."""
        return jnp.take(self.embedding[...], tokens, axis=0).astype(self.compute.dtype)

    def bias(self, distances: Int[np.ndarray, "*n"]) -> Float[Array, "heads ..."]:
        """Return what is added to the scores of keys that lie so many tokens back."""
        values = self.relative_bias[...][bucket(distances, self.config)]
        return jnp.moveaxis(values, -1, 0)

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        memory: Memory,
        *,
        memory_valid: Bool[Array, "b m"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Return what the output map reads; see `__call__`."""
        x, _ = self._run(tokens, memory, memory_valid=memory_valid, keys=keys)
        return x

    def prefill(
        self,
        tokens: Int[Array, "b p"],
        memory: Memory,
        *,
        valid: Bool[Array, "b p"],
        memory_valid: Bool[Array, "b m"] | None = None,
    ) -> tuple[Float[Array, "b d"], tuple[Array, Array], Float[Array, "b m"]]:
        """Read tokens that are given; return what comes of the last of each row.

        valid: which tokens count; rows of fewer are padded on the left. Returns the last hidden
        state, keys [l b heads hd p] and values [l b heads p hd], and the last token's map over the
        memory, a mean over heads and layers.
        """
        x, (k, v, maps) = self._run(
            tokens, memory, memory_valid=memory_valid, valid=valid, keep=True
        )
        return x[:, -1], (k, v), maps.mean(axis=0)

    def _run(
        self,
        tokens: Int[Array, "b t"],
        memory: Memory,
        *,
        memory_valid: Bool[Array, "b m"] | None,
        keys: Key[Array, " b"] | None = None,
        valid: Bool[Array, "b t"] | None = None,
        keep: bool = False,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """Run all layers over whole texts; with `keep` return also what `prefill` gives."""
        rate, t = self.config.dropout, tokens.shape[1]
        back = np.arange(t)[:, None] - np.arange(t)[None]  # query, key
        bias = self.bias(back)
        seen = jnp.asarray(back >= 0)[None, None]
        if valid is not None:
            seen = seen & valid[:, None, None]
        graph, stacked = nnx.split(self.blocks)

        def read(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            return attend(q, k, v, bias=bias, seen=seen)[0], (k, v)

        def body(x: Array, layer: Any) -> tuple[Array, Any]:
            params, memory, index = layer
            x = constrain(x, "rows", None, None)
            x, kv, weights = nnx.merge(graph, params)(
                x, memory, read=read, memory_valid=memory_valid, keys=keys, layer=index
            )
            return x, (*kv, weights[:, :, -1].mean(axis=1)) if keep else None

        body = checkpointed(body, remat=self.compute.remat)
        x = dropout(self.embed(tokens), keys, rate=rate, site=0)
        x, kept = jax.lax.scan(body, x, (stacked, memory, jnp.arange(self.config.depth)))
        return dropout(self.norm(x), keys, rate=rate, site=1), kept

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Map hidden states to scores of each token, float32."""
        wide = jnp.promote_types(self.compute.dtype, jnp.float32)
        if self.config.tied:
            hidden = hidden * self.config.width**-0.5
        kernel = self.embedding[...].T if self.config.tied else self.out.kernel[...]
        hidden = hidden.astype(self.compute.dtype)
        kernel = kernel.astype(self.compute.dtype)
        return jnp.matmul(hidden, kernel, preferred_element_type=wide)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        memory: Memory,
        *,
        memory_valid: Bool[Array, "b m"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t v"]:
        """Score the next token after each of `tokens`, float32.

        tokens: those that are read, the first being the start. memory_valid: what of the memory
        there is; a row may have none. keys: of each row, for dropout; None drops nothing.
        """
        hidden = self.hidden(tokens, memory, memory_valid=memory_valid, keys=keys)
        return self.logits(hidden)
