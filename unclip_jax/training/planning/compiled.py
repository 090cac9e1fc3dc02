"""What a compiled program does, read from its text: products, bytes, and what crosses the network.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

_SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "s4": 0.5,
    "u4": 0.5,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
}
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
_BETWEEN_SLICES = re.compile(
    r'_xla_megascale_target="\{([\d,:]+)\}.*_xla_megascale_transfer_type="(\w+)"'
)
# These move nothing, or what they move is counted elsewhere.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier"),
}


@dataclass(frozen=True)
class Collective:
    """All transfers of one kind, dtype and group size that one device takes part in."""

    kind: str
    dtype: str
    group: int
    """Devices that exchange with one another; of transfers between slices, the slices."""
    count: int
    largest: float
    """Bytes of the largest whole array, gathered or before it is scattered."""
    received: float
    """Bytes that a device receives, with the best algorithm for a ring."""
    is_across: bool = False
    """Between slices. The compiler has reduced within the slice before, and gathers after: a
    device exchanges only its own part with its peers in the other slices."""


@dataclass(frozen=True)
class ProgramText:
    """Of one device and one run of the program."""

    flops: float
    """Operations of matrix products and convolutions, recomputed ones included."""
    bytes_moved: float
    """Bytes that operations read and write, each array once an operation."""
    collectives: list[Collective]


@dataclass
class _Instruction:
    name: str
    type: str
    operation: str
    rest: str
    operands: list[str]


@dataclass
class _Computation:
    is_entry: bool
    instructions: list[_Instruction] = field(default_factory=list)


def read_program(text: str, devices: int) -> ProgramText:
    """The counts of a compiled program.

    Args:
        text: as `jax.stages.Compiled.as_text` returns it.
        devices: that it runs on.
    """
    computations = _parse(text)
    runs, fused = _multiplicities(computations)
    flops = moved = 0.0
    found: dict[tuple[str, str, int, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    channels: set[tuple[str, ...]] = set()
    for name, computation in computations.items():
        times = runs[name]
        types = {item.name: item.type for item in computation.instructions}
        for item in computation.instructions:
            flops += times * _flops(item, types)
            if name not in fused and item.operation not in _FREE:
                read = sum(_bytes(types.get(operand, "")) for operand in item.operands)
                moved += times * (read + _bytes(item.type))
            row = _transfer(item, name, types, devices)
            if row is None:
                continue
            channel = re.search(r"channel_id=(\d+)", item.rest)
            if channel is not None:  # an asynchronous one stands at several places
                place = (item.operation, channel[1], *item.operands)
                if place in channels:
                    continue
                channels.add(place)
            entry = found[row.kind, row.dtype, row.group, row.is_across]
            entry[0] += times
            entry[1] = max(entry[1], row.largest)
            entry[2] += times * row.received
    rows = [
        Collective(kind, dtype, group, int(count), largest, received, is_across)
        for (kind, dtype, group, is_across), (count, largest, received) in found.items()
    ]
    return ProgramText(flops, moved, sorted(rows, key=lambda row: -row.received))


def _parse(text: str) -> dict[str, _Computation]:
    computations: dict[str, _Computation] = {}
    current: _Computation | None = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = _Computation(header[1] is not None)
        elif current is not None and (match := _INSTRUCTION.match(line)):
            name, kind, operation, rest = match.groups()
            operands = _OPERAND.findall(rest[: _closing(rest)])
            current.instructions.append(_Instruction(name, kind, operation, rest, operands))
    return computations


def _closing(text: str) -> int:
    """Where the parenthesis closes that was opened before `text`."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i
    return len(text)


def _multiplicities(computations: dict[str, _Computation]) -> tuple[dict[str, int], set[str]]:
    """How often each computation runs, and which are the inside of one operation."""
    runs = {name: int(computation.is_entry) for name, computation in computations.items()}
    fused: set[str] = set()
    for name in reversed(computations):  # the text has what is called before what calls it
        for item in computations[name].instructions:
            called = _CALLED.findall(item.rest)
            for branches in _BRANCHES.findall(item.rest):
                called += _OPERAND.findall(branches)
            times = _trips(item, computations) if item.operation == "while" else 1
            for other in called:
                if other not in runs:
                    continue
                runs[other] += times * runs[name]
                if item.operation not in ("while", "conditional", "call"):
                    fused.add(other)
    return runs, fused


def _trips(loop: _Instruction, computations: dict[str, _Computation]) -> int:
    """As the loop says, or the bound that its condition compares its counter with."""
    if said := _TRIPS.search(loop.rest):
        return int(said[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
    inside = computations[condition[1]].instructions if condition else []
    bounds = [
        int(number[0])
        for item in inside
        if item.operation == "constant" and item.type.startswith(("s32[]", "u32[]"))
        if (number := re.match(r"\d+", item.rest))
    ]
    return max(bounds, default=1)


def _bytes(kind: str) -> float:
    """Of a type, or of all the members of a tuple."""
    return sum(
        _SIZES.get(dtype, 0) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in _SHAPE.findall(kind)
    )


def _shape(kind: str) -> list[int]:
    match = _SHAPE.search(kind)
    return [int(n) for n in match[2].split(",") if n] if match else []


def _flops(item: _Instruction, types: dict[str, str]) -> float:
    if item.operation not in ("convolution", "dot") or len(item.operands) < 2:
        return 0.0
    out, kernel = math.prod(_shape(item.type)), _shape(types.get(item.operands[1], ""))
    if item.operation == "dot":
        left = _shape(types.get(item.operands[0], ""))
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", item.rest)
        axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2.0 * out * math.prod(left[i] for i in axes)
    labels = re.search(r"dim_labels=\w+_(\w+)->", item.rest)
    if labels is None or not kernel:
        return 0.0
    products = math.prod(kernel) / kernel[labels[1].index("o")]
    groups = re.search(r"batch_group_count=(\d+)", item.rest)
    holes = re.search(r"lhs_dilate=([\dx]+)", item.rest)
    if groups:
        products /= int(groups[1])
    if holes:
        products /= math.prod(int(n) for n in holes[1].split("x"))
    return 2.0 * out * products


def _transfer(
    item: _Instruction, computation: str, types: dict[str, str], devices: int
) -> Collective | None:
    """What an instruction receives from other devices; None if it is not the one that does."""
    if (kind := item.operation.removesuffix("-start")) in _COLLECTIVES:
        return _collective(item, kind, computation, types, devices)
    if item.operation == "recv" and (match := _BETWEEN_SLICES.search(item.rest)):
        return _between_slices(item, match[1], match[2])
    return None


def _between_slices(item: _Instruction, slices: str, how: str) -> Collective:
    """A transfer that the hosts make for a device; `slices` is spelled 1,2,3 or 1:3."""
    ends = [part.split(":") for part in slices.split(",")]
    group = sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
    kind = how.lower().replace("_", "-")
    dtype, shape = _SHAPE.findall(item.type)[0]
    out = _bytes(f"{dtype}[{shape}]")
    whole = out * group if kind == "reduce-scatter" else out
    received = whole * (group - 1) / group * (2 if kind == "all-reduce" else 1)
    return Collective(kind, dtype, group, 1, whole, received, is_across=True)


def _collective(
    item: _Instruction, kind: str, computation: str, types: dict[str, str], devices: int
) -> Collective:
    members = _SHAPE.findall(item.type)
    sizes = [_bytes(f"{dtype}[{shape}]") for dtype, shape in members] or [0.0]
    operands = sum(_bytes(types.get(operand, "")) for operand in item.operands)
    group = _group(item.rest, devices)
    out = max(sizes) if item.operation.endswith("-start") else sum(sizes)
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # as a TPU program spells it
    largest = max(max(sizes), max((_bytes(types.get(o, "")) for o in item.operands), default=0.0))
    share = (group - 1) / group
    received = {
        "all-gather": out * share,
        "reduce-scatter": max(operands, out) * share,
        "all-reduce": 2 * out * share,
        "all-to-all": out * share,
        "ragged-all-to-all": out * share,
        "collective-permute": out,
    }[kind]
    return Collective(kind, members[0][0] if members else "", group, 1, largest, received)


def _group(rest: str, devices: int) -> int:
    """Devices of a replica group; XLA spells them in four ways."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([\w.:()]+)'=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([\w.:()]+)'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(match[1].split(","))
    return devices
