"""A function of ours as an ONNX graph with a dynamic batch.

The function is traced with a symbolic number of rows; each operation of the trace becomes one or a
few nodes, and what does not depend on the inputs becomes a constant. So a graph is what the code
computes, whatever the head. Scans are unrolled. Needs the package onnx (extra [convert]).

There are converters from JAX to ONNX: those that keep up with JAX ask for an older Orbax than our
checkpoints need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from jax import export
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

from xmae_jax.exports.operations import Known, NotConvertible, Value, convert

OPSET = 18  # of 2022: ReduceMax takes its axes as an input from here on
IR_VERSION = 9  # as old as the opset allows: runtimes refuse what is newer than they are
EXTERNAL = 1 << 30
"""Bytes of constants from which they lie in a file beside the graph: protobuf ends at 2 GiB."""
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
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
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
            made = convert(self, eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]
