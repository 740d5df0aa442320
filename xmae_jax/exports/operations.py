"""The operations of a traced function as ONNX nodes, for `graph.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from onnx import helper  # pyright: ignore[reportMissingImports]

_END = np.iinfo(np.int64).max
_SAME = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
"""Primitives that are one ONNX operator of the same inputs."""
_IDENTITY = ("copy", "name", "optimization_barrier", "sharding_constraint", "stop_gradient")
_WRAPPERS = ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2")
_REDUCE = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_sum": "ReduceSum",
}
Known = np.ndarray  # a value that does not depend on the inputs
Value = Known | str  # or the name of one that does


class NotConvertible(Exception):
    """An operation that has no counterpart here; the message names it."""


@runtime_checkable
class Graph(Protocol):
    """What an operation is added to; see `graph.py`."""

    def node(
        self, kind: str, inputs: Sequence[Value], *, output: str | None = None, **options: Any
    ) -> str: ...

    def shape(self, dims: Sequence[Any]) -> Value: ...

    def reshape(self, value: Value, dims: Sequence[Any]) -> Value: ...

    def transpose(self, value: Value, order: Sequence[int]) -> Value: ...

    def run(self, jaxpr: Any, consts: Sequence[Known], inputs: Sequence[Value]) -> list[Value]: ...


def convert(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Convert one operation."""
    kind = eqn.primitive.name
    inner = _inner(eqn)
    if kind == "scan":
        return _scan(graph, eqn, inputs)
    if inner is not None:
        jaxpr = getattr(inner, "jaxpr", inner)
        return graph.run(jaxpr, [np.asarray(c) for c in getattr(inner, "consts", ())], inputs)
    if kind in _IDENTITY:
        return inputs
    if all(isinstance(value, np.ndarray) for value in inputs) and _is_static(eqn):
        out = eqn.primitive.bind(*inputs, **eqn.params)
        return [np.asarray(x) for x in (out if eqn.primitive.multiple_results else [out])]
    if kind in _SAME:
        return [graph.node(_SAME[kind], inputs)]
    if kind in _REDUCE:
        axes = np.array(eqn.params["axes"], np.int64)
        return [graph.node(_REDUCE[kind], [inputs[0], axes], keepdims=0)]
    if kind not in _OTHERS:
        raise NotConvertible(f"the operation {kind!r}")
    made = _OTHERS[kind](graph, eqn, inputs)
    return made if isinstance(made, list) else [made]


def _inner(eqn: Any) -> Any:
    """Return the trace that an operation only wraps: of jit, a custom gradient, a recomputation."""
    if eqn.primitive.name not in _WRAPPERS:
        return None
    return next(eqn.params[name] for name in ("jaxpr", "call_jaxpr") if name in eqn.params)


def _is_static(eqn: Any) -> bool:
    return all(isinstance(dim, int) for var in eqn.outvars for dim in var.aval.shape)


def _scan(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Unroll a scan over known or traced arrays."""
    p, body = eqn.params, eqn.params["jaxpr"]
    jaxpr, consts = (
        getattr(body, "jaxpr", body),
        [np.asarray(c) for c in getattr(body, "consts", ())],
    )

    def whole(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        """Count what is the same for every step: it has no axis more outside than inside."""
        ranks = (len(o.aval.shape) - len(i.aval.shape) for o, i in zip(outer, inner, strict=True))
        return sum(rank == 0 for rank in ranks)

    # JAX 0.12 has other parameters than 0.10 that count these.
    start, carried = whole(eqn.invars, jaxpr.invars), whole(eqn.outvars, jaxpr.outvars)
    fixed, carry = inputs[: start - carried], inputs[start - carried : start]
    steps = range(p["length"])
    rows: list[list[Value]] = []
    for i in reversed(steps) if p["reverse"] else steps:
        ours = [_row(graph, value, i) for value in inputs[start:]]
        out = graph.run(jaxpr, consts, [*fixed, *carry, *ours])
        carry = out[:carried]
        rows.append(out[carried:])
    if p["reverse"]:
        rows.reverse()
    stacked: list[Value] = []
    for column, var in zip(zip(*rows, strict=True), eqn.outvars[carried:], strict=True):
        one = (1, *var.aval.shape[1:])
        stacked.append(graph.node("Concat", [graph.reshape(x, one) for x in column], axis=0))
    return [*carry, *stacked]


def _row(graph: Graph, value: Value, i: int) -> Value:
    if isinstance(value, np.ndarray):
        return value[i]
    return graph.node("Gather", [value, np.array(i, np.int64)], axis=0)


def _dot(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    """Multiply matrices: batch axes first, then the free ones of each side, the summed inside."""
    (sum_l, sum_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    shape_l, shape_r = (var.aval.shape for var in eqn.invars)
    free_l = [i for i in range(len(shape_l)) if i not in (*sum_l, *batch_l)]
    free_r = [i for i in range(len(shape_r)) if i not in (*sum_r, *batch_r)]
    left = graph.transpose(inputs[0], [*batch_l, *free_l, *sum_l])
    right = graph.transpose(inputs[1], [*batch_r, *sum_r, *free_r])
    batch = [shape_l[i] for i in batch_l]
    summed = math.prod(shape_l[i] for i in sum_l)
    rows, columns = [shape_l[i] for i in free_l], [shape_r[i] for i in free_r]
    if batch or len(sum_l) != 1 or not rows:
        left = graph.reshape(left, [*batch, _product(rows), summed])
    right = graph.reshape(right, [*batch, summed, _product(columns)])
    product = graph.node("MatMul", [left, right])
    return graph.reshape(product, [*batch, *rows, *columns])


def _product(dims: Sequence[Any]) -> Any:
    return math.prod(dims) if all(isinstance(dim, int) for dim in dims) else -1.0


def _broadcast(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    """Set axes apart, then repeat."""
    target, kept = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    before = eqn.invars[0].aval.shape
    sizes: list[Any] = [1] * len(target)
    for axis, size in zip(kept, before, strict=True):
        sizes[axis] = size
    value = graph.reshape(inputs[0], sizes)
    if tuple(sizes) == tuple(target):
        return value
    return graph.node("Expand", [value, graph.shape(target)])


def _slice(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    p, shape = eqn.params, eqn.invars[0].aval.shape
    ends = [
        _END if end == size else end for end, size in zip(p["limit_indices"], shape, strict=True)
    ]
    return _cut(graph, inputs[0], p["start_indices"], ends, p["strides"] or [1] * len(shape))


def _cut(graph: Graph, value: Value, starts: Any, ends: Any, steps: Any) -> Value:
    """Slice along the axes where that leaves something out."""
    axes = [
        i
        for i, cut in enumerate(zip(starts, ends, steps, strict=True))
        if tuple(cut) != (0, _END, 1)
    ]
    if not axes:
        return value
    first, last, by = ([part[i] for i in axes] for part in (starts, ends, steps))
    return graph.node("Slice", [value, *(np.array(x, np.int64) for x in (first, last, axes, by))])


def _gather(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    """Convert the three gathers that indexing by numbers, by a table and by rows makes."""
    n, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    value, indices = inputs
    shape, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if isinstance(indices, np.ndarray) and indices.ndim == 1 and not n.operand_batching_dims:
        starts, ends = [0] * len(shape), [_END] * len(shape)
        for axis, first in zip(n.start_index_map, indices.tolist(), strict=True):
            if sizes[axis] != shape[axis]:
                starts[axis], ends[axis] = first, first + sizes[axis]
        return graph.reshape(_cut(graph, value, starts, ends, [1] * len(shape)), out)
    axis = n.start_index_map[0]
    whole = all(sizes[i] == shape[i] for i in range(len(shape)) if i not in _alone(n))
    if n.collapsed_slice_dims == (axis,) and whole and axis == len(n.operand_batching_dims):
        last = tuple(range(len(out) - (len(shape) - axis - 1), len(out)))
        if n.offset_dims == last and n.operand_batching_dims == n.start_indices_batching_dims:
            indices = graph.node("Cast", [indices], to=onnx.TensorProto.INT64)
            return graph.node("GatherND", [value, indices], batch_dims=axis)
    raise NotConvertible(f"a gather with {n}")


def _alone(numbers: Any) -> tuple[int, ...]:
    return (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)


def _select(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    which, *cases = inputs
    if len(cases) != 2 or eqn.invars[0].aval.dtype != np.bool_:
        raise NotConvertible("a choice among more than two")
    return graph.node("Where", [which, cases[1], cases[0]])


def _cast(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return graph.node("Cast", inputs, to=kind)


def _rsqrt(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    return graph.node("Reciprocal", [graph.node("Sqrt", inputs)])


def _power(graph: Graph, eqn: Any, inputs: list[Value]) -> Value:
    return graph.node("Pow", [inputs[0], np.array(eqn.params["y"], eqn.invars[0].aval.dtype)])


def _split(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    rank, axis, start, parts = len(eqn.invars[0].aval.shape), eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        starts, ends = [0] * rank, [_END] * rank
        starts[axis], ends[axis] = start, start + size
        parts.append(_cut(graph, inputs[0], starts, ends, [1] * rank))
        start += size
    return parts


def _unstack(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Take an axis apart; JAX 0.12 does so where an array is unpacked."""
    axis = eqn.params["axis"]
    return [
        graph.node("Gather", [inputs[0], np.array(i, np.int64)], axis=axis)
        for i in range(len(eqn.outvars))
    ]


_OTHERS: dict[str, Callable[[Graph, Any, list[Value]], Value | list[Value]]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda g, e, x: g.node("Concat", x, axis=e.params["dimension"]),
    "convert_element_type": _cast,
    "dot_general": _dot,
    "gather": _gather,
    "integer_pow": _power,
    "ne": lambda g, e, x: g.node("Not", [g.node("Equal", x)]),
    "reshape": lambda g, e, x: g.reshape(x[0], e.outvars[0].aval.shape),
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": lambda g, e, x: g.node("Mul", [x[0], x[0]]),
    "squeeze": lambda g, e, x: g.reshape(x[0], e.outvars[0].aval.shape),
    "unstack": _unstack,
    "transpose": lambda g, e, x: g.transpose(x[0], e.params["permutation"]),
}
