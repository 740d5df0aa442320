"""What a compiled program moves: collectives and memory traffic, read from its optimised HLO text.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs. What
lies in on-chip memory (TPU memory space 1) moves nothing.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM = {"pred": 1.0, "s4": 0.5, "u4": 0.5, "bf16": 2.0, "f16": 2.0}
_ARRAY = re.compile(r"(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "call",
         "conditional", "after-all", "partition-id", "iota"}  # fmt: skip


class Moved(NamedTuple):
    """Collectives of one kind over groups of one size, in one run of the program."""

    kind: str
    group: int
    """Devices that take part in each."""
    times: int
    bytes: float
    """Of the larger side, the gathered or not yet scattered array, on one device."""

    @property
    def sent(self) -> float:
        """Bytes that each device sends around a ring; an all-reduce is two passes.

        Source: Chan et al., Collective communication (Concurrency and Computation 19(13), 2007).
        """
        passes = 2.0 if self.kind == "all-reduce" else 1.0
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return passes * share * self.bytes


class Traffic(NamedTuple):
    """What one run of a program moves on one device."""

    collectives: list[Moved]
    memory: float
    """Bytes read from and written to device memory, an estimate: each operation's operands and
    results, of which caches may save some."""


class _Op(NamedTuple):
    name: str
    type: str
    kind: str
    operands: list[str]
    rest: str


def _closing(text: str, start: int) -> int:
    """Return the place after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError("an HLO line ends within a parenthesis")


def _parse(text: str) -> tuple[dict[str, list[_Op]], str]:
    """Return the operations of each computation, and the name of the entry."""
    computations: dict[str, list[_Op]] = {}
    entry, ops = "", []
    for line in text.splitlines():
        if not line.startswith(" "):
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                ops = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
            continue
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
        if match is None:
            continue
        start = match.end()
        end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
        opening = line.index("(", end)
        closing = _closing(line, opening)
        operands = re.findall(r"%([\w.\-]+)", line[opening:closing])
        kind = line[end:opening].strip()
        ops.append(_Op(match[1], line[start:end], kind, operands, line[opening:]))
    return computations, entry


def _arrays(type_: str) -> list[float]:
    """Return the bytes of each array of a type, 0 for those in on-chip memory."""
    sizes = []
    for kind, shape, layout in _ARRAY.findall(type_):
        item = _ITEM.get(kind) or int(re.sub(r"\D.*", "", kind[1:])) / 8
        size = item * math.prod(int(n) for n in shape.split(",") if n)
        sizes.append(0.0 if "S(1)" in layout else size)
    return sizes


def _all_bytes(type_: str) -> list[float]:
    return _arrays(type_.replace("S(1)", ""))


def _group(rest: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(match[1].split(","))
    return devices


def _trips(op: _Op, computations: dict[str, list[_Op]]) -> int:
    """Return how often a loop runs: what the compiler knows, or what its condition compares to."""
    if match := re.search(r'known_trip_count":\{"n":"(\d+)"', op.rest):
        return int(match[1])
    condition = _called(op, "condition")
    found = [
        re.match(r"\((\d+)\)", o.rest) for o in computations[condition] if o.kind == "constant"
    ]
    numbers = [int(m[1]) for m in found if m]
    if len(numbers) != 1:
        raise ValueError(f"how often does the loop {op.name} run?")
    return numbers[0]


def _called(op: _Op, what: str) -> str:
    match = re.search(rf"{what}=%?([\w.\-]+)", op.rest)
    if match is None:
        raise ValueError(f"{op.kind} {op.name} names no {what}")
    return match[1]


def _uses(name: str, ops: list[_Op]) -> Iterator[tuple[str, float, bool]]:
    """Yield kind, bytes of the result, and whether it is the first operand, of each use."""
    for op in ops:
        if name in op.operands and op.kind == "bitcast":
            yield from _uses(op.name, ops)
        elif name in op.operands:
            yield op.kind, sum(_all_bytes(op.type)), op.operands[0] == name


def _bytes(op: _Op, types: dict[str, str]) -> float:
    """Count what one operation outside of a fusion reads and writes."""
    if op.kind in _FREE or op.kind.endswith("-done"):
        return 0.0
    if op.kind == "dynamic-slice":
        return 2 * sum(_arrays(op.type))
    if op.kind == "dynamic-update-slice":
        return 2 * sum(_arrays(types[op.operands[1]]))
    read = sum(sum(_arrays(types.get(name, ""))) for name in op.operands)
    if op.kind.endswith("-start"):  # its type repeats the operand, and more
        return read + (_arrays(op.type) or [0.0])[0 if op.kind == "copy-start" else -1]
    return read + sum(_arrays(op.type))


def _fusion_bytes(op: _Op, types: dict[str, str], fused: list[_Op]) -> float:
    """Count a fusion's operands and results; of a slice of an operand the slice alone."""
    by_name = {o.name: o for o in fused}
    total = 0.0
    place = {o.name: int(o.rest[1 : o.rest.index(")")]) for o in fused if o.kind == "parameter"}
    for name, index in place.items():
        whole = sum(_arrays(types.get(op.operands[index], "")))
        uses = list(_uses(name, fused))
        if uses and all(kind == "dynamic-slice" and first for kind, _, first in uses):
            whole = min(whole, sum(size for _, size, _ in uses))
        if uses and all(kind == "dynamic-update-slice" and first for kind, _, first in uses):
            whole = 0.0
        total += whole
    root = fused[-1]
    results = [by_name[n] for n in root.operands] if root.kind == "tuple" else [root]
    for result, size in zip(results, _arrays(op.type), strict=False):
        while result.kind in ("bitcast", "convert", "copy"):
            result = by_name[result.operands[0]]
        if result.kind == "dynamic-update-slice":
            size = min(size, sum(_all_bytes(by_name[result.operands[1]].type)))
        total += size
    return total


def traffic(text: str, devices: int) -> Traffic:
    """Read the optimised HLO text of a program over so many devices."""
    computations, entry = _parse(text)
    moved: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    memory = 0.0

    def walk(name: str, times: int, *, fused: bool) -> None:
        nonlocal memory
        ops = computations[name]
        types = {op.name: op.type for op in ops}
        for op in ops:
            kind = op.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                given = sum(sum(_all_bytes(types.get(o, ""))) for o in op.operands)
                made = sum(_all_bytes(op.type)) - (given if op.kind.endswith("-start") else 0)
                entry = moved[kind, _group(op.rest, devices)]
                entry[0] += times
                entry[1] += times * max(given, made)
            if op.kind == "while":
                walk(_called(op, "body"), times * _trips(op, computations), fused=fused)
            elif op.kind == "fusion":
                inside = _called(op, "calls")
                memory += 0 if fused else times * _fusion_bytes(op, types, computations[inside])
                walk(inside, times, fused=True)
                continue
            elif op.kind in ("call", "async-start"):
                key = "calls" if "calls=" in op.rest else "to_apply"
                walk(_called(op, key), times, fused=fused)
            memory += 0 if fused else times * _bytes(op, types)

    walk(entry, 1, fused=False)
    collectives = [
        Moved(kind, group, int(count), size) for (kind, group), (count, size) in moved.items()
    ]
    return Traffic(sorted(collectives, key=lambda m: -m.bytes), memory)
