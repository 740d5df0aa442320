"""A function of ours as an ONNX graph with a dynamic batch.

The function is traced with a symbolic number of rows; each operation of the trace becomes one or a
few nodes, and what does not depend on the inputs becomes a constant. So a graph is what the code
computes, whatever the head. Scans are unrolled. Needs the package onnx (extra [convert]).

There are converters from JAX to ONNX: those that keep up with JAX ask for an older Orbax than our
checkpoints need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from jax import export
from onnx import helper, numpy_helper

OPSET = 18  # of 2022: ReduceMax takes its axes as an input from here on
IR_VERSION = (
    9  # the oldest that has this opset's types; runtimes refuse what is newer than they are
)
EXTERNAL = (
    1 << 30
)  # bytes of constants from which they lie in a file beside: protobuf ends at 2 GiB
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
_IDENTITY = ("copy", "copy_p", "name", "optimization_barrier", "sharding_constraint", "stop_gradient")
_REDUCE = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_sum": "ReduceSum",
}
Known = np.ndarray  # a value that does not depend on the inputs
Value = Known | str  # or the name of one that does


class NotConvertible(Exception):
    """An operation that has no counterpart here; the message names it."""


Inputs = Mapping[str, tuple[tuple[int, ...], Any]]


def to_onnx(
    fn: Callable[..., dict[str, jax.Array]], inputs: Inputs, *, name: str
) -> onnx.ModelProto:
    """Convert `fn(**inputs)` to a model.

    inputs: name -> (shape, dtype) of arrays [b, *shape]; one that nothing comes of is left out of
    the model. The outputs are named as in the dict that `fn` returns; every axis that is b there is
    dynamic. Raises NotConvertible.
    """
    (rows,) = export.symbolic_shape("b")
    specs = {
        key: jax.ShapeDtypeStruct((rows, *shape), dtype) for key, (shape, dtype) in inputs.items()
    }
    names, shapes = list(specs), list(specs.values())
    told: list[str] = []

    def flat(*arrays: jax.Array) -> list[jax.Array]:
        out = fn(**dict(zip(names, arrays, strict=True)))
        told[:] = sorted(out)
        return [out[key] for key in told]

    closed = jax.make_jaxpr(flat)(*shapes)
    graph = _Graph(rows, first=names[0])
    found = graph.run(closed.jaxpr, [np.asarray(c) for c in closed.consts], names)
    outputs = []
    for key, value, aval in zip(told, found, closed.out_avals, strict=True):
        graph.node("Identity", [value], output=key)
        outputs.append(_info(key, aval))
    nodes, read = _needed(graph.nodes, told)
    used = [_info(key, spec) for key, spec in specs.items() if key in read]
    constants = [tensor for tensor in graph.constants if tensor.name in read]
    made = helper.make_graph(nodes, name, used, outputs, constants)
    return helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="xmae_jax",
    )


def _needed(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Leave out nodes that no output comes of; return the others and what they read."""
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    return kept[::-1], read


def save(model: onnx.ModelProto, path: Path, about: Mapping[str, str]) -> None:
    """Check a model and write it, with `about` as its metadata."""
    helper.set_model_props(model, dict(about))
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    large = size >= EXTERNAL
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(path, full_check=True)  # of the file: it knows of the one beside


def _info(name: str, aval: Any) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    shape = [dim if isinstance(dim, int) else "batch" for dim in aval.shape]
    return helper.make_tensor_value_info(name, kind, shape)


class _Graph:
    """Nodes and constants as they come."""

    def __init__(self, rows: Any, *, first: str):
        self.rows, self._first = rows, first
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._small: dict[tuple, str] = {}
        self._batch: str | None = None

    def node(
        self, kind: str, inputs: Sequence[Value], *, output: str | None = None, **options: Any
    ) -> str:
        """Add a node of one output; return its name."""
        output = output or f"v{len(self.nodes)}"
        names = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [output], **options))
        return output

    def name(self, value: Value) -> str:
        """Name a value; a known one becomes a constant."""
        if isinstance(value, str):
            return value
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size <= 16 else ()
        if key in self._small:
            return self._small[key]
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        if key:
            self._small[key] = name
        return name

    def shape(self, dims: Sequence[Any]) -> Value:
        """Give a shape as int64 [r]; with b in it, read off the first input."""
        if all(isinstance(dim, int) for dim in dims):
            return np.array(dims, np.int64)
        if self._batch is None:
            self._batch = self.node("Shape", [self._first], start=0, end=1)
        parts: list[Value] = []
        for dim in dims:
            if not isinstance(dim, int) and dim != self.rows:
                raise NotConvertible(f"a size of {dim}")
            parts.append(np.array([dim], np.int64) if isinstance(dim, int) else self._batch)
        return self.node("Concat", parts, axis=0)

    def reshape(self, value: Value, dims: Sequence[Any]) -> Value:
        """Reshape; one size at most depends on b, and is inferred."""
        if isinstance(value, np.ndarray):
            return value.reshape(dims)
        sizes = [dim if isinstance(dim, int) else -1 for dim in dims]
        if sizes.count(-1) > 1:
            raise NotConvertible(f"a reshape to {tuple(dims)}")
        return self.node("Reshape", [value, np.array(sizes, np.int64)])

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Permute the axes."""
        if list(order) == sorted(order):
            return value
        if isinstance(value, np.ndarray):
            return value.transpose(order)
        return self.node("Transpose", [value], perm=list(order))

    def run(self, jaxpr: Any, consts: Sequence[Known], inputs: Sequence[Value]) -> list[Value]:
        """Go through a trace; return its outputs."""
        values: dict[Any, Value] = {}

        def read(atom: Any) -> Value:
            return np.asarray(atom.val) if hasattr(atom, "val") else values[atom]

        values |= dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            made = _convert(self, eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]


def _convert(graph: _Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
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
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params and eqn.primitive.name != "scan":
            return eqn.params[name]
    return None


def _is_static(eqn: Any) -> bool:
    return all(isinstance(dim, int) for var in eqn.outvars for dim in var.aval.shape)


def _scan(graph: _Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Unroll a scan over known or traced arrays."""
    p = eqn.params
    fixed, start = p["num_consts"], p["num_consts"] + p["num_carry"]
    carry, body = inputs[fixed:start], p["jaxpr"]
    steps = range(p["length"])
    rows: list[list[Value]] = []
    for i in reversed(steps) if p["reverse"] else steps:
        ours = [_row(graph, value, i) for value in inputs[start:]]
        consts = [np.asarray(c) for c in body.consts]
        out = graph.run(body.jaxpr, consts, [*inputs[:fixed], *carry, *ours])
        carry = out[: p["num_carry"]]
        rows.append(out[p["num_carry"] :])
    if p["reverse"]:
        rows.reverse()
    stacked: list[Value] = []
    for column, var in zip(zip(*rows, strict=True), eqn.outvars[p["num_carry"] :], strict=True):
        one = (1, *var.aval.shape[1:])
        stacked.append(graph.node("Concat", [graph.reshape(x, one) for x in column], axis=0))
    return [*carry, *stacked]


def _row(graph: _Graph, value: Value, i: int) -> Value:
    if isinstance(value, np.ndarray):
        return value[i]
    return graph.node("Gather", [value, np.array(i, np.int64)], axis=0)


def _dot(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
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


def _broadcast(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
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


def _slice(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
    p, shape = eqn.params, eqn.invars[0].aval.shape
    ends = [
        _END if end == size else end for end, size in zip(p["limit_indices"], shape, strict=True)
    ]
    return _cut(graph, inputs[0], p["start_indices"], ends, p["strides"] or [1] * len(shape))


def _cut(graph: _Graph, value: Value, starts: Any, ends: Any, steps: Any) -> Value:
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


def _gather(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
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


def _select(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
    which, *cases = inputs
    if len(cases) != 2 or eqn.invars[0].aval.dtype != np.bool_:
        raise NotConvertible("a choice among more than two")
    return graph.node("Where", [which, cases[1], cases[0]])


def _cast(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return graph.node("Cast", inputs, to=kind)


def _rsqrt(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
    return graph.node("Reciprocal", [graph.node("Sqrt", inputs)])


def _power(graph: _Graph, eqn: Any, inputs: list[Value]) -> Value:
    return graph.node("Pow", [inputs[0], np.array(eqn.params["y"], eqn.invars[0].aval.dtype)])


def _split(graph: _Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    rank, axis, start, parts = len(eqn.invars[0].aval.shape), eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        starts, ends = [0] * rank, [_END] * rank
        starts[axis], ends[axis] = start, start + size
        parts.append(_cut(graph, inputs[0], starts, ends, [1] * rank))
        start += size
    return parts


_OTHERS: dict[str, Callable[[_Graph, Any, list[Value]], Value | list[Value]]] = {
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
    "transpose": lambda g, e, x: g.transpose(x[0], e.params["permutation"]),
}
