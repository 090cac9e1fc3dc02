"""What was found in a file or folder, as text for a person and as JSON for a program."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from unclip_jax.printable import printable

_MOST_FACTS, _MOST_ROWS, _WIDTH = 300, 60, 100


@dataclass(frozen=True)
class Leaf:
    """An array that is not read."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Branch:
    """All arrays whose names begin alike."""

    name: str
    arrays: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What one file or folder is."""

    kind: str
    """'run', 'exported stage', 'picture', ..."""
    facts: dict[str, Any] = field(default_factory=dict)
    """In order; values that JSON can hold."""
    leaves: Mapping[str, Leaf] = field(default_factory=dict)
    """Arrays by name, 'unet/conv_in/kernel' or 'unet.conv_in.weight'."""
    problems: tuple[str, ...] = ()
    """What is damaged or does not fit."""
    parts: dict[str, Finding] = field(default_factory=dict)
    """What it is made of: a model's stages."""

    def all_problems(self) -> list[str]:
        """Its own and those of its parts."""
        inner = [f"{name}: {one}" for name, part in self.parts.items() for one in part.problems]
        return [*self.problems, *inner]


def branches(leaves: Mapping[str, Leaf], depth: int) -> list[Branch]:
    """The arrays by the first `depth` parts of their names, by fewer if that is too long."""
    for parts in range(depth, 0, -1):
        groups: dict[str, list[Leaf]] = {}
        for name, leaf in leaves.items():
            sign = "/" if "/" in name else "."
            groups.setdefault(sign.join(name.split(sign)[:parts]), []).append(leaf)
        if len(groups) <= _MOST_ROWS:
            break
    return [_branch(name, groups[name]) for name in groups]


def _branch(name: str, leaves: list[Leaf]) -> Branch:
    return Branch(
        name,
        len(leaves),
        sum(leaf.size for leaf in leaves),
        sum(leaf.bytes for leaf in leaves),
        tuple(sorted({leaf.dtype for leaf in leaves})),
    )


def to_json(finding: Finding, depth: int) -> dict[str, Any]:
    """The finding for `json.dumps`."""
    found: dict[str, Any] = {"kind": finding.kind, "facts": finding.facts}
    if finding.leaves:
        found["total"] = vars(_branch("total", list(finding.leaves.values())))
        found["tree"] = [vars(branch) for branch in branches(finding.leaves, depth)]
    if finding.parts:
        found["parts"] = {name: to_json(part, depth) for name, part in finding.parts.items()}
    return {**found, "problems": list(finding.problems)}


def to_text(finding: Finding, name: str, depth: int) -> str:
    """The finding as lines for a terminal; what acts on one is escaped."""
    lines = [f"{printable(name)}: {finding.kind}"]
    facts = list(_sections(finding.facts))
    width = min(32, max((len(key) for key, _ in facts), default=0))
    for key, value in facts[:_MOST_FACTS]:
        start = f"  {key:{width}}  "
        room = max(40, _WIDTH - len(start))
        first, *rest = textwrap.wrap(value, room, break_on_hyphens=False) or [""]
        lines += [start + first, *(" " * (width + 4) + line for line in rest)]
    lines += [f"  ... and {len(facts) - _MOST_FACTS} more"] if facts[_MOST_FACTS:] else []
    if finding.leaves:
        lines += ["", *_table(branches(finding.leaves, depth), finding)]
    if finding.parts:
        lines += ["", *_parts_table(finding.parts)]
    lines += [f"  ! {printable(problem, 1000)}" for problem in finding.all_problems()]
    return "\n".join(lines)


def _sections(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A line for each fact; of a nested object one for all that is plain in it."""
    for key, value in data.items():
        name = prefix + printable(key, 80)
        if not isinstance(value, Mapping):
            yield name, _words(value)
            continue
        plain = {one: v for one, v in value.items() if not isinstance(v, Mapping)}
        said = {one: v for one, v in plain.items() if v is not None and v != []}
        if said:
            yield name, ", ".join(f"{printable(one, 80)} {_words(v)}" for one, v in said.items())
        inner = {one: v for one, v in value.items() if isinstance(v, Mapping)}
        yield from _sections(inner, f"{name}.")


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return printable(f"[{', '.join(map(str, value))}]", 1000)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 99_999:
        return f"{value:,}"
    return printable("none" if value is None else value, 2000)


def _table(rows: list[Branch], finding: Finding) -> list[str]:
    total = _branch("total", list(finding.leaves.values()))
    shown = rows[:_MOST_ROWS]
    if rows[_MOST_ROWS:]:
        left = rows[_MOST_ROWS:]
        names = tuple(sorted({dtype for row in left for dtype in row.dtypes}))
        arrays, size, memory = (
            sum(getattr(row, key) for row in left) for key in ("arrays", "parameters", "bytes")
        )
        shown.append(Branch(f"({len(left)} more)", arrays, size, memory, names))
    width = max(len(printable(row.name, 60)) for row in [*shown, total])
    lines = [f"  {'weights':{width}} {'arrays':>7} {'parameters':>15} {'MB':>10}  type"]
    for row in [*shown, total]:
        numbers = f"{row.arrays:7,} {row.parameters:15,} {row.bytes / 1e6:10,.1f}"
        lines.append(f"  {printable(row.name, 60):{width}} {numbers}  {', '.join(row.dtypes)}")
    return lines


def _parts_table(parts: Mapping[str, Finding]) -> list[str]:
    """One line a part: what it is, and how large."""
    width = max(len(printable(name, 60)) for name in parts)
    lines = []
    for name, part in parts.items():
        total = _branch("", list(part.leaves.values()))
        what = "numbers in all" if part.kind == "checkpoint" else "parameters"
        size = f"{total.parameters:15,} {what} {total.bytes / 1e6:10,.1f} MB"
        facts = [f"{key} {printable(part.facts[key], 60)}" for key in _SHORT if key in part.facts]
        numbers = f"  {size}" if part.leaves else ""
        lines.append(f"  {printable(name, 60):{width}}{numbers}  {', '.join(facts)}")
    return lines


_SHORT = ("stage", "step", "loss", "state", "clip")
"""Facts that a part's line shows."""
