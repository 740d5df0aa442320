"""Digests of arrays, by which damage on a disk is seen.

The digest of a leaf depends on its path, shape, dtype and values only. It is computed where the
leaf lies: every element is mixed with its place and the results are added, and integer addition
does not care how a leaf is split over devices. It finds damage, not forgery.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped, UInt32

from xmae_jax.typing import leaf_path

_LANES = (0x9E3779B1, 0x27D4EB2F)
"""Two odd multipliers, so two sums of 32 bits: 64 bits a leaf."""


def flatten(tree: Any) -> dict[str, Any]:
    """Turn any tree into path -> leaf; the form in which a state is saved."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict[str, Any], like: Any) -> Any:
    """Undo `flatten` into the structure of `like`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(structure, [flat[leaf_path(path)] for path, _ in paths])


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn path -> leaf into nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


def _mix(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Send 32 bits to 32 bits, one to one (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit
def _sums(x: Shaped[Array, "*n"]) -> UInt32[Array, 2]:
    """Hash values and places. A change of one element changes both sums for certain."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = _mix(place)
    return jnp.stack(
        [jnp.sum(_mix(bits + place * jnp.uint32(k)), dtype=jnp.uint32) for k in _LANES]
    )


def leaf_digests(tree: Any) -> dict[str, str]:
    """Return path -> digest of every leaf, wherever and however it is laid out."""
    flat = flatten(tree)
    sums = jax.device_get({name: _sums(leaf) for name, leaf in flat.items()})
    return {name: _name(name, leaf, sums[name].tobytes()) for name, leaf in flat.items()}


def sha256(tree: Any) -> dict[str, str]:
    """Return path -> sha256 over path, shape, dtype and values of every leaf, on one host."""
    digests = {}
    for name, leaf in flatten(tree).items():  # one at a time, since a host holds it whole
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        leaf = np.asarray(jax.device_get(leaf))
        digests[name] = _name(name, leaf, np.ascontiguousarray(leaf).tobytes(), digits=64)
    return digests


def _name(name: str, leaf: Any, content: bytes, *, digits: int = 32) -> str:
    head = f"{name} {tuple(leaf.shape)} {leaf.dtype.name}".encode()
    return hashlib.sha256(head + content).hexdigest()[:digits]
