"""Scaled dot-product attention; the one place where its backend is chosen.

Vaswani et al., Attention Is All You Need (arXiv 1706.03762), section 3.2.1. All backends compute
the same: softmax and its sums in float32, every query to every key. "chunked" and the kernels of
"cudnn" and "splash" never hold all scores at once (Dao et al., FlashAttention, arXiv 2205.14135).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jaxtyping import Array, Float

from xmae_jax import sharding

Backend = Literal["auto", "plain", "chunked", "cudnn", "splash"]

SHORT = 1024
"""Up to so many queries and keys the scores are small, and plain attention is the fastest."""
SAVED = "attention"
"""Name under which a recomputation policy can keep what attention gave."""
_BLOCK_Q, _BLOCK_K = 256, 1024
_NVIDIA = ("gpu", "cuda")


def attend(
    q: Float[Array, "b n heads hd"],
    k: Float[Array, "b m heads hd"],
    v: Float[Array, "b m heads hd"],
    *,
    backend: Backend,
) -> Float[Array, "b n heads hd"]:
    """Attend from every query to every key.

    backend: "plain" keeps all scores; "chunked" works anywhere in linear memory; "cudnn" is
    NVIDIA's kernel, for bfloat16; "splash" is Pallas' for TPU. "auto" takes the platform's for
    long sequences and plain for short ones.
    """
    if backend == "auto":
        backend = choose(max(q.shape[1], k.shape[1]), q.dtype)
    with jax.named_scope("attention"):
        if backend == "splash":
            rows = ("rows", None, "heads", None)
            out = sharding.per_device(_splash, (rows, rows, rows), rows)(q, k, v)
        elif backend == "cudnn":
            out = checkpoint_name(_cudnn(q, k, v), SAVED)  # the others name what they keep
        else:
            out = (_plain if backend == "plain" else _chunked)(q, k, v)
        return out


def read_back(
    rows: Float[Array, "b c n"], q: Float[Array, "b n heads hd"], k: Float[Array, "b m heads hd"]
) -> Float[Array, "b c m"]:
    """Weigh the keys by how the queries read them: `rows` times the map, a mean over the heads.

    The map is made for a block of queries at a time, float32.
    """
    n, shape = q.shape[1], (*rows.shape[:2], k.shape[1])
    size = min(_BLOCK_Q, n)
    queries = _blocks(q, size)  # blocks b heads size hd
    weights = jnp.pad(rows, ((0, 0), (0, 0), (0, -n % size))).reshape(*rows.shape[:2], -1, size)

    def one_block(total: Array, x: tuple[Array, Array]) -> tuple[Array, None]:
        queries, weights = x
        scores = _product("bhqd,bkhd->bhqk", queries, k) * q.shape[-1] ** -0.5
        read = jax.nn.softmax(scores, axis=-1).mean(axis=1)  # b size m
        return total + _product("bcq,bqk->bck", weights, read), None

    start = jnp.zeros(shape, jnp.float32)
    return jax.lax.scan(one_block, start, (queries, jnp.moveaxis(weights, 2, 0)))[0]


def check(backend: str, platform: str, dtype: jnp.dtype) -> None:
    """Raise ValueError if a backend does not run on a platform in that type."""
    if backend == "splash" and platform != "tpu":
        raise ValueError(f"'splash' runs on TPUs, and this is {platform}")
    if backend == "cudnn" and platform not in _NVIDIA:
        raise ValueError(f"'cudnn' runs on NVIDIA's cards, and this is {platform}")
    if backend == "cudnn" and dtype == jnp.float32:
        raise ValueError("'cudnn' has no float32")


def choose(length: int, dtype: jnp.dtype) -> Backend:
    """Return the backend for the platform that is compiled for."""
    if length <= SHORT:
        return "plain"
    platform = sharding.platform()
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform in _NVIDIA and dtype != jnp.float32 else "chunked"


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _plain(q: Array, k: Array, v: Array) -> Array:
    """Hold all scores, but keep none for the gradient: they cost less to compute than to store."""
    return _plain_forward(q, k, v)[0]


def _plain_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # b heads n hd
    scores = _product("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = (_product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v) / total).astype(q.dtype)
    out, log_total = (checkpoint_name(x, SAVED) for x in (out, top + jnp.log(total)))
    return out.swapaxes(1, 2), (q, k, v, out, log_total)


def _plain_backward(residuals: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, log_total = residuals
    scale, d_out = q.shape[-1] ** -0.5, d_out.swapaxes(1, 2)
    weights = jnp.exp(_product("bhqd,bhkd->bhqk", q, k) * scale - log_total)
    # The softmax's gradient needs each query's sum of d_out * out only.
    inner = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    d_scores = weights * (_product("bhqd,bhkd->bhqk", d_out, v) - inner) * scale
    d_scores = d_scores.astype(q.dtype)
    d_q = _product("bhqk,bhkd->bhqd", d_scores, k)
    d_k = _product("bhqk,bhqd->bhkd", d_scores, q)
    d_v = _product("bhqk,bhqd->bhkd", weights.astype(d_out.dtype), d_out)
    d_q, d_k, d_v = (x.swapaxes(1, 2).astype(q.dtype) for x in (d_q, d_k, d_v))
    return d_q, d_k, d_v


_plain.defvjp(_plain_forward, _plain_backward)


def _pad(x: Array, multiple: int) -> Array:
    """Fill axis 1 with zeros up to a multiple."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)))


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    """Run NVIDIA's kernel at even lengths: an odd one gets one more token, which is masked.

    JAX (0.10 to 0.12) refuses the gradient at odd lengths where there is a bias, and takes the
    empty array that stands for none as one.
    """
    b, n, m = len(q), q.shape[1], k.shape[1]
    odd = n % 2 or m % 2
    # Of rows that are sharded every device may read the first lengths: they have to be all alike.
    out = jax.nn.dot_product_attention(
        *(_pad(x, 2) for x in (q, k, v)),
        query_seq_lengths=jnp.full(b, n, jnp.int32) if odd else None,
        key_value_seq_lengths=jnp.full(b, m, jnp.int32) if odd else None,
        implementation="cudnn",
    )
    return out[:, :n]


def _splash(q: Array, k: Array, v: Array, *, interpret: bool = False) -> Array:
    """Run the kernel on one device's rows and heads; lengths are padded to whole blocks."""
    n, m, heads = q.shape[1], k.shape[1], q.shape[2]
    block_q, block_k = _block(n), _block(m)
    q = _pad(q, block_q).swapaxes(1, 2)  # b heads n hd
    k, v = (_pad(x, block_k).swapaxes(1, 2) for x in (k, v))
    padded_n, padded_m = q.shape[2], k.shape[2]
    kernel = splash.make_splash_mha_single_device(
        mask=splash_attention_mask.MultiHeadMask(
            [splash_attention_mask.FullMask((padded_n, padded_m))] * heads
        ),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )
    # Padding is a segment of its own: nothing real attends to it.
    segments = splash.SegmentIds(
        (jnp.arange(padded_n) >= n).astype(jnp.int32), (jnp.arange(padded_m) >= m).astype(jnp.int32)
    )
    all_rows = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    # The kernel does not scale. In bfloat16 the factor itself would be rounded, for all alike.
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    out: Any = all_rows(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :n]


def _block(length: int) -> int:
    """Choose a multiple of 128 up to 1,024: large blocks, but little padding.

    A block is taken to cost as much as 64 more rows do, a guess.
    """
    blocks = range(1024, 0, -splash.NUM_LANES)
    return min(blocks, key=lambda block: -(-length // block) * (block + 64))


@jax.custom_vjp
def _chunked(q: Array, k: Array, v: Array) -> Array:
    """Go over blocks of queries and keys with an online softmax."""
    return _chunked_forward(q, k, v)[0]


def _blocks(x: Array, block: int) -> Array:
    """Cut axis 1 into blocks, padded: [blocks b heads block hd]."""
    x = _pad(x, block)
    b, n, heads, hd = x.shape
    return x.reshape(b, n // block, block, heads, hd).transpose(1, 0, 3, 2, 4)


def _unblock(x: Array, n: int) -> Array:
    blocks, b, heads, block, hd = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(b, blocks * block, heads, hd)[:, :n]


def _scores(q: Array, k: Array, first: Array, m: int) -> Array:
    """Score a block of queries and a block of keys that starts at key `first` of m."""
    scores = _product("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    real = first + jnp.arange(k.shape[2]) < m
    return jnp.where(real[None, None, None], scores, -jnp.inf)


def _chunked_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    n, m = q.shape[1], k.shape[1]
    block_q, block_k = min(_BLOCK_Q, n), min(_BLOCK_K, m)
    keys, values = _blocks(k, block_k), _blocks(v, block_k)
    firsts = jnp.arange(len(keys)) * block_k

    def one_query_block(queries: Array) -> tuple[Array, Array]:
        def one_key_block(carry, x):
            acc, top, total = carry
            keys, values, first = x
            scores = _scores(queries, keys, first, m)
            new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
            weights = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            seen = _product("bhqk,bhkd->bhqd", weights.astype(values.dtype), values)
            total = total * shrink + weights.sum(axis=-1, keepdims=True)
            return (acc * shrink + seen, new_top, total), None

        shape = queries.shape[:3]
        start = (
            jnp.zeros(queries.shape, jnp.float32),
            jnp.full((*shape, 1), -jnp.inf),
            jnp.zeros((*shape, 1)),
        )
        (acc, top, total), _ = jax.lax.scan(one_key_block, start, (keys, values, firsts))
        return (acc / total).astype(q.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(one_query_block, _blocks(q, block_q))
    out, log_total = (checkpoint_name(x, SAVED) for x in (_unblock(out, n), log_total))
    return out, (q, k, v, out, log_total)


def _chunked_backward(residuals: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, log_total = residuals
    n, m = q.shape[1], k.shape[1]
    block_q, block_k = min(_BLOCK_Q, n), min(_BLOCK_K, m)
    queries, d_outs = _blocks(q, block_q), _blocks(d_out, block_q)
    inner = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    inner = _blocks(inner, block_q)
    scale = q.shape[-1] ** -0.5

    def one_key_block(d_queries, x):
        keys, values, first = x

        def one_query_block(carry, x):
            d_keys, d_values = carry
            queries, d_out, inner, log_total = x
            weights = jnp.exp(_scores(queries, keys, first, m) - log_total)
            d_weights = _product("bhqd,bhkd->bhqk", d_out, values)
            d_scores = (weights * (d_weights - inner) * scale).astype(q.dtype)
            d_values += _product("bhqk,bhqd->bhkd", weights.astype(d_out.dtype), d_out)
            d_keys += _product("bhqk,bhqd->bhkd", d_scores, queries)
            return (d_keys, d_values), _product("bhqk,bhkd->bhqd", d_scores, keys)

        zeros = jnp.zeros(keys.shape, jnp.float32)
        (d_keys, d_values), more = jax.lax.scan(
            one_query_block, (zeros, zeros), (queries, d_outs, inner, log_total)
        )
        return d_queries + more, (d_keys.astype(k.dtype), d_values.astype(v.dtype))

    keys, values = _blocks(k, block_k), _blocks(v, block_k)
    firsts = jnp.arange(len(keys)) * block_k
    d_queries, (d_keys, d_values) = jax.lax.scan(
        one_key_block, jnp.zeros(queries.shape, jnp.float32), (keys, values, firsts)
    )
    return _unblock(d_queries, n).astype(q.dtype), _unblock(d_keys, m), _unblock(d_values, m)


_chunked.defvjp(_chunked_forward, _chunked_backward)
