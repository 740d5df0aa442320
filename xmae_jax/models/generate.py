"""Write texts with a T5 decoder: greedy and beam search in one compiled loop.

Token for token what `generate` of Hugging Face's transformers gives, with its default heuristic of
when no beam can still win (early_stopping False). Differs from it in that a beam's past is known
by which beam wrote each place, so that no keys move when beams change; in that the memory is not
repeated for beams; and in that rows may begin with texts of different lengths.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xmae_jax.models.t5 import END, PAD, Memory, T5Decoder
from xmae_jax.models.t5_steps import Cache, Steps
from xmae_jax.sharding import constrain

PREFIX_BUCKET, NEW_BUCKET = 8, 32
"""Lengths are compiled for in multiples of these."""
_NEVER = -1e9
"""What is added to a score that must not win; a finite number, as in Hugging Face."""


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How texts are searched for."""

    beams: int
    """1 is greedy search."""
    max_new: int
    """Tokens at most, the end among them, what is forced not."""
    min_new: int = 0
    """The end is not chosen before there are so many."""
    length_penalty: float = 1.0
    """A text's score is the sum of its log-probabilities over its length to this power."""
    no_repeat_ngram: int = 0
    """No n tokens in a row come twice, what is forced included; 0 allows all."""

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_new < 1:
            raise ValueError("beams and max_new must be positive")
        if not 0 <= self.min_new <= self.max_new:
            raise ValueError(f"min_new {self.min_new} is not from 0 to max_new {self.max_new}")
        if self.no_repeat_ngram < 0:
            raise ValueError("no_repeat_ngram must not be negative")


class Generated(NamedTuple):
    """The best text of each row, less what was forced."""

    tokens: Int[Array, "b t"]
    """The end is the last of a text that is not cut; pads after it."""
    length: Int[Array, " b"]
    score: Float[Array, " b"]
    """By which it won."""
    log_prob: Float[Array, "b t"]
    """Of each token under the decoder alone; 0 after the text."""
    attention: Float[Array, "b t m"] | None
    """Over the memory when each token was chosen, a mean over heads and layers."""


class _Beams(NamedTuple):
    """Texts of c beams; `at` has the beam that wrote each place, the first t of p + t."""

    tokens: Int[Array, "b c s"]
    log_prob: Float[Array, "b c s"]
    at: Int[Array, "b c s"]
    score: Float[Array, "b c"]

    def take(self, index: Int[Array, "b k"]) -> _Beams:
        """Choose beams of each row."""
        return jax.tree.map(partial(_take, index=index), self)


class _State(NamedTuple):
    chosen: Int[Array, ""]
    """How many tokens."""
    running: _Beams
    done: _Beams
    ended: Bool[Array, "b c"]
    """Which of `done` are texts."""
    length: Int[Array, "b c"]
    open: Bool[Array, " b"]
    """Rows in which a running beam may still win."""
    cache: Cache
    maps: Float[Array, "b t c m"] | None


def _take(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def generate(
    decoder: T5Decoder,
    memory: Memory,
    *,
    config: GenerateConfig,
    memory_valid: Bool[Array, "b m"] | None = None,
    prefix: Int[Array, "b p"] | None = None,
    prefix_length: Int[Array, " b"] | None = None,
    attention: bool = False,
) -> Generated:
    """Write a text for each row of the memory.

    prefix: tokens that each text begins with, after the start; padded on the right to
    `prefix_length`. Compiled once for all lengths of a bucket. A row does not depend on others.
    """
    rows = memory.k.shape[1]
    if prefix is None:
        prefix, prefix_length = jnp.zeros((rows, 0), jnp.int32), jnp.zeros(rows, jnp.int32)
    if prefix_length is None:
        raise ValueError("a prefix needs its prefix_length")
    wide = _bucketed(prefix.shape[1], PREFIX_BUCKET)
    prefix = jnp.pad(prefix, ((0, 0), (0, wide - prefix.shape[1])))
    graph, params = nnx.split(decoder)
    found = _generate(
        params,
        memory,
        memory_valid,
        prefix,
        prefix_length,
        jnp.asarray(config.max_new, jnp.int32),
        graph=graph,
        # Of the length the bucket alone is compiled for.
        config=dataclasses.replace(config, max_new=_bucketed(config.max_new, NEW_BUCKET)),
        attention=attention,
    )
    t = config.max_new
    maps = found.attention if found.attention is None else found.attention[:, :t]
    return found._replace(
        tokens=found.tokens[:, :t], log_prob=found.log_prob[:, :t], attention=maps
    )


def _bucketed(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@partial(jax.jit, static_argnames=("graph", "config", "attention"))
def _generate(
    params: Any,
    memory: Memory,
    memory_valid: Array | None,
    prefix: Array,
    prefix_length: Array,
    max_new: Array,
    *,
    graph: nnx.GraphDef,
    config: GenerateConfig,
    attention: bool,
) -> Generated:
    decoder: T5Decoder = nnx.merge(graph, params)
    c, steps = config, Steps(decoder, memory, memory_valid=memory_valid)
    given, first = _right(prefix, prefix_length)
    (b, p), n, t = given.shape, c.beams, c.max_new
    last, kept, seen_first = decoder.prefill(
        given,
        memory,
        valid=jnp.arange(p)[None] >= first[:, None],
        memory_valid=memory_valid,
    )
    tokens = jnp.full((b, n, p + t), PAD, jnp.int32).at[:, :, :p].set(given[:, None])
    # Beams are the same at first, so only one may go on.
    score = jnp.where(jnp.arange(n) == 0, 0.0, _NEVER)
    score = jnp.broadcast_to(score.astype(jnp.float32), (b, n))
    none = jnp.zeros((b, n, p + t), jnp.float32)
    at = jnp.zeros((b, n, p + t), jnp.int32)
    running = _Beams(tokens, none, at, score)
    maps = None
    if attention:
        maps = jnp.zeros((b, t, n, seen_first.shape[1]), jnp.float32)
        maps = maps.at[:, 0, 0].set(seen_first.astype(jnp.float32))
    state = _State(
        chosen=jnp.asarray(0, jnp.int32),
        running=running,
        done=running._replace(score=jnp.full((b, n), _NEVER, jnp.float32)),
        ended=jnp.zeros((b, n), bool),
        length=jnp.zeros((b, n), jnp.int32),
        open=jnp.ones(b, bool),
        cache=steps.cache(p + t, n, kept=kept),
        maps=maps,
    )
    choose = partial(_choose, first=first, given=p, max_new=max_new, config=c)
    logits = decoder.logits(last)[:, None]  # b 1 v
    state = choose(state, jnp.broadcast_to(logits, (b, n, logits.shape[2])))

    def more(state: _State) -> Array:
        return (state.chosen < max_new) & state.open.any()

    def body(state: _State) -> _State:
        place = p + state.chosen - 1
        seen = _seen(state.running.at, first, place)
        new = jax.lax.dynamic_index_in_dim(state.running.tokens, place, axis=2, keepdims=False)
        logits, cache, read = steps.step(new, state.cache, position=place, seen=seen)
        maps = state.maps
        if maps is not None:
            update = read.astype(maps.dtype)[:, None]
            maps = jax.lax.dynamic_update_slice_in_dim(maps, update, state.chosen, axis=1)
        return choose(state._replace(cache=cache, maps=maps), logits)

    state = jax.lax.while_loop(more, body, state)
    return _best(state, given=p, config=c)


def _right(prefix: Array, length: Array) -> tuple[Array, Array]:
    """Move what is given, with the start before it, to the right; return it and where it begins.

    T5 knows places by their distance alone, so this changes nothing, and rows go on together.
    """
    whole = jnp.pad(prefix, ((0, 0), (1, 0)), constant_values=PAD)
    first = prefix.shape[1] - length
    source = jnp.arange(whole.shape[1])[None] - first[:, None]  # b p; before the start, pads too
    return jnp.take_along_axis(whole, jnp.maximum(source, 0), axis=1), first


def _seen(at: Array, first: Array, place: Array) -> Array:
    """Say which of all beams' places a beam's past is: [b c sc]."""
    b, n, s = at.shape
    places = jnp.arange(s)[None]
    real = (places >= first[:, None]) & (places <= place)  # b s
    seen = (at[..., None] == jnp.arange(n)[None, None, None]) & real[:, None, :, None]  # b c s c
    return seen.reshape(b, n, s * n)


def _banned(tokens: Array, place: Array, first: Array, n: int) -> tuple[Array, Array]:
    """Return the token after each n - 1 tokens of the past, and whether they are the last ones.

    tokens: [b c s], of which those before `place` are there.
    """
    windows = tokens.shape[2] - n + 1
    begins = jnp.arange(windows)[None]
    same = (begins >= first[:, None]) & (begins + n <= place)  # b windows
    same = same[:, None]
    for i in range(n - 1):
        last = jax.lax.dynamic_index_in_dim(tokens, place - (n - 1) + i, axis=2)
        same = same & (tokens[:, :, i : i + windows] == last)
    same = jnp.broadcast_to(same, (*tokens.shape[:2], windows))
    return tokens[:, :, n - 1 :], same


def _choose(
    state: _State,
    logits: Float[Array, "b c v"],
    *,
    first: Array,
    given: int,
    max_new: Array,
    config: GenerateConfig,
) -> _State:
    """Take the best next tokens of all beams; put aside the texts that end."""
    c, n, count = config, config.beams, state.chosen
    b, _, v = logits.shape
    running, place = state.running, given + count
    log_prob = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    free = log_prob
    if c.no_repeat_ngram:
        token, same = _banned(running.tokens, place, first, c.no_repeat_ngram)
        row, beam = jnp.arange(b)[:, None, None], jnp.arange(n)[None, :, None]
        free = free.at[row, beam, token].min(jnp.where(same, -jnp.inf, jnp.inf))
    if c.min_new:
        early = (jnp.arange(v) == END) & (count < c.min_new)
        free = jnp.where(early[None, None], -jnp.inf, free)
    total = (free + running.score[..., None]).reshape(b, n * v)
    # A beam has one end, so that of twice as many candidates enough go on.
    score, index = jax.lax.top_k(total, 2 * n)  # b 2c
    beam, token = index // v, (index % v).astype(jnp.int32)
    own = jnp.take_along_axis(log_prob.reshape(b, n * v), index, axis=1)

    def put(x: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new[..., None], place, axis=2)

    candidates = running.take(beam)
    candidates = candidates._replace(
        tokens=put(candidates.tokens, token), log_prob=put(candidates.log_prob, own), score=score
    )
    ends = (token == END) | (count + 1 == max_new)  # b 2c
    going = score + jnp.where(ends, _NEVER, 0.0).astype(jnp.float32)
    next_index = jax.lax.top_k(going, n)[1]
    following = candidates._replace(score=going).take(next_index)
    own_place = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (b, n))
    following = following._replace(at=put(following.at, own_place))

    penalty = jnp.asarray(_penalties(c))[count]
    new = ends & (jnp.arange(2 * n) < n)[None]
    final = score / penalty + jnp.where(state.open[:, None], 0.0, _NEVER).astype(jnp.float32)
    final = final + jnp.where(new, 0.0, _NEVER).astype(jnp.float32)
    both = jax.tree.map(
        lambda x, y: jnp.concatenate([x, y], axis=1),
        (state.done, state.ended, state.length),
        (candidates._replace(score=final), new, jnp.full((b, 2 * n), count + 1, jnp.int32)),
    )
    kept = jax.lax.top_k(both[0].score, n)[1]
    done, ended, length = jax.tree.map(partial(_take, index=kept), both)
    if n == 1:
        still = ~ended[:, 0]
    else:
        worst = jnp.where(ended, done.score.min(axis=1, keepdims=True), _NEVER)
        still = (following.score[:, :1] / penalty > worst).any(axis=1)
    return state._replace(
        chosen=count + 1,
        running=following,
        done=done,
        ended=ended,
        length=length,
        open=state.open & still,
    )


def _penalties(config: GenerateConfig) -> np.ndarray:
    """Return what a score is divided by, for each length from 1, float32."""
    return (np.arange(1, config.max_new + 1) ** float(config.length_penalty)).astype(np.float32)


def _best(state: _State, *, given: int, config: GenerateConfig) -> Generated:
    """Take each row's best text, and what was seen when its tokens were chosen."""
    best = jax.tree.map(lambda x: x[:, 0], state.done)
    length = state.length[:, 0]
    real = jnp.arange(config.max_new)[None] < length[:, None]  # b t
    maps = state.maps
    if maps is not None:
        # The step that chose a token was that of the place before, whose beam read.
        at = best.at[:, given - 1 : given - 1 + config.max_new]  # b t
        maps = jnp.take_along_axis(maps, at[..., None, None], axis=2)[:, :, 0]  # b t m
        maps = constrain(jnp.where(real[..., None], maps, 0), "rows", None, None)
    return Generated(
        tokens=jnp.where(real, best.tokens[:, given:], PAD),
        length=length,
        score=best.score,
        log_prob=jnp.where(real, best.log_prob[:, given:], 0),
        attention=maps,
    )
