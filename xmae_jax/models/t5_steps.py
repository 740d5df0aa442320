"""A T5 decoder one token at a time, of several beams a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmae_jax.models.layers import block_of
from xmae_jax.models.t5 import Memory, T5Decoder, attend
from xmae_jax.sharding import constrain


class Cache(NamedTuple):
    """Keys and values of self-attention, a layer each: of c beams of b rows at s places."""

    k: tuple[Float[Array, "b heads hd sc"], ...]
    """The last axis goes over places, then beams."""
    v: tuple[Float[Array, "b heads sc hd"], ...]


class Steps:
    """A decoder and a memory, laid out for many steps of one token.

    Stacks are taken apart here, before the loop, where no step would have to copy its slice.
    """

    def __init__(
        self, decoder: T5Decoder, memory: Memory, *, memory_valid: Bool[Array, "b m"] | None = None
    ):
        self.decoder, self.memory_valid = decoder, memory_valid
        layers = range(decoder.config.depth)
        self.blocks = [block_of(decoder.blocks, i) for i in layers]
        self.memories = [Memory(memory.k[i], memory.v[i]) for i in layers]

    def cache(self, places: int, beams: int, *, kept: tuple[Array, Array] | None = None) -> Cache:
        """Make a cache for so many places; `kept` of `prefill` comes first, on beam 0."""
        c, (_, b, *_) = self.decoder.config, self.memories[0].k[None].shape
        dtype = self.decoder.compute.dtype
        k = jnp.zeros((c.depth, b, c.heads, c.head_width, places, beams), dtype)
        v = jnp.zeros((c.depth, b, c.heads, places, beams, c.head_width), dtype)
        if kept is not None:
            k = k.at[..., : kept[0].shape[-1], 0].set(kept[0])
            v = v.at[:, :, :, : kept[1].shape[-2], 0].set(kept[1])
        k, v = k.reshape(*k.shape[:4], -1), v.reshape(*v.shape[:3], -1, c.head_width)
        k, v = (constrain(x, None, "rows", "heads", None, None) for x in (k, v))
        return Cache(tuple(k), tuple(v))

    def step(
        self,
        tokens: Int[Array, "b c"],
        cache: Cache,
        *,
        position: Int[Array, ""],
        seen: Bool[Array, "b c sc"],
    ) -> tuple[Float[Array, "b c v"], Cache, Float[Array, "b c m"]]:
        """Read one token of each beam at a place; score the next one.

        seen: which of all beams' places a beam reads, its own here included; so beams that change
        their past move no keys. Returns also the map over the memory, a mean over heads and layers.
        """
        beams, places = tokens.shape[1], seen.shape[2] // tokens.shape[1]
        # The bias of each distance, laid so that a slice of it starts at this place's.
        table = self.decoder.bias(np.arange(places)[::-1])  # heads places
        table = jnp.pad(table, ((0, 0), (0, places)))
        bias = jax.lax.dynamic_slice_in_dim(table, places - 1 - position, places, axis=1)
        bias = jnp.repeat(bias, beams, axis=1)[:, None]  # heads 1 sc
        x, maps, ks, vs = self.decoder.embed(tokens), [], [], []
        for i, (block, memory) in enumerate(zip(self.blocks, self.memories, strict=True)):

            def read(q: Array, k: Array, v: Array, i: int = i) -> tuple[Array, Any]:
                at = position * beams
                k = jax.lax.dynamic_update_slice_in_dim(cache.k[i], k, at, axis=3)
                v = jax.lax.dynamic_update_slice_in_dim(cache.v[i], v, at, axis=2)
                return attend(q, k, v, bias=bias, seen=seen[:, None])[0], (k, v)

            x, (k, v), weights = block(x, memory, read=read, memory_valid=self.memory_valid)
            ks.append(k)
            vs.append(v)
            maps.append(weights.mean(axis=1))
        logits = self.decoder.logits(self.decoder.norm(x))
        return logits, Cache(tuple(ks), tuple(vs)), sum(maps[1:], maps[0]) / len(maps)
