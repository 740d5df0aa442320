"""Floating-point operations of a function's matrix products and convolutions, from its jaxpr.

Counting what is traced needs no formula for each model, and no array is made. A model's FLOPs are
those of its forward pass times three, as in Chowdhery et al., PaLM (arXiv 2204.02311, appendix B):
recomputation is not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

FORWARD_AND_BACKWARD = 3


def matmul_flops(fn: Callable[..., Any], *args: Any, unit: int = 1) -> Counter[str]:
    """Return the FLOPs of each part of `fn(*args)`; parts are its outer two named scopes.

    args may be shapes. With a `unit`, contracted and output widths count in whole multiples of it:
    what a matrix unit of that side is busy for.
    """
    counted: Counter[str] = Counter()
    _count(jax.make_jaxpr(fn)(*args).jaxpr, 1, (), unit, counted)
    return counted


def _count(jaxpr: Any, times: int, scope: tuple[str, ...], unit: int, counted: Counter) -> None:
    for eqn in jaxpr.eqns:
        stack = str(eqn.source_info.name_stack)
        # jvp(encoder) and transpose(jvp(encoder)) are the encoder's.
        names = [n for n in stack.replace("transpose(", "").replace("jvp(", "").split("/")]
        inner = (*scope, *(n.strip("()") for n in names if n.strip("()")))
        if eqn.primitive.name == "dot_general":
            counted["/".join(_parts(inner))] += times * _dot(eqn, unit)
            continue
        if eqn.primitive.name == "conv_general_dilated":
            counted["/".join(_parts(inner))] += times * _conv(eqn)
            continue
        repeats = times * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
        for value in eqn.params.values():
            for sub in value if isinstance(value, tuple | list) else (value,):
                if hasattr(sub, "eqns"):  # closed or not: one class in newer versions of JAX
                    _count(sub, repeats, inner, unit, counted)


def _parts(scope: tuple[str, ...]) -> list[str]:
    """Keep the scopes that this code gives: a model's part, and within it attention."""
    kept = [name for name in scope if name in ("encoder", "decoder", "attention")]
    return kept[:2] or ["other"]


def _conv(eqn: Any) -> int:
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // outputs


def _dot(eqn: Any, unit: int) -> int:
    (contract, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    contracted = math.prod(left[i] for i in contract)
    rows = math.prod(left) // contracted  # of all batches together
    columns = math.prod(out) // rows

    def whole(n: int) -> int:
        return -(-n // unit) * unit

    return 2 * rows * whole(contracted) * whole(columns)


class Stack(NamedTuple):
    """A scanned stack of blocks, as one row goes through it."""

    depth: int
    tokens: int
    """Of all its films together."""
    width: int


def stacks(fn: Callable[..., Any], *args: Any) -> list[Stack]:
    """Return the stacks of blocks in `fn(*args)`: scans that return a residual stream [s n d]."""
    found = []

    def look(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                shapes = [v.aval.shape for v in eqn.outvars]
                if len(shapes) == 1 and len(shapes[0]) == 3:
                    films, tokens, width = shapes[0]
                    found.append(Stack(eqn.params["length"], films * tokens, width))
                    continue
            for value in eqn.params.values():
                if hasattr(value, "eqns"):
                    look(value)

    look(jax.make_jaxpr(fn)(*args).jaxpr)
    return found
