"""The table of a comparison: block, shape, greatest error, relative error, verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK_TOLERANCE = 1e-5
"""Relative, of float32 networks: a wrong epsilon or the other GELU costs 3e-5 or more."""


@dataclass(frozen=True)
class Row:
    """One array of the reference beside ours."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float
    """||ours - reference|| / ||reference||, of the row of the batch that is worst."""
    tolerance: float

    @property
    def passes(self) -> bool:
        """Within the tolerance; an error that is not a number does not pass."""
        return self.relative <= self.tolerance


def compare_arrays(
    name: str, ours: Any, reference: np.ndarray, tolerance: float = BLOCK_TOLERANCE
) -> Row:
    """One row; arrays of different shapes differ by infinity."""
    ours = np.asarray(ours, np.float64)
    reference = np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        return Row(name, reference.shape, float("inf"), float("inf"), tolerance)
    difference = ours - reference
    rows = (1,) if reference.ndim == 0 else (reference.shape[0],)
    norms = np.linalg.norm(reference.reshape(*rows, -1), axis=1)
    errors = np.linalg.norm(difference.reshape(*rows, -1), axis=1)
    relative = np.max(np.where(errors == 0, 0.0, errors / np.maximum(norms, 1e-30)))
    return Row(name, reference.shape, float(np.max(np.abs(difference))), float(relative), tolerance)


def table(rows: Sequence[Row]) -> str:
    """Aligned text, a line a row."""
    width = max((len(row.name) for row in rows), default=5)
    lines = [f"{'block':{width}}  {'shape':>18}  {'max abs':>9}  {'relative':>9}  verdict"]
    for row in rows:
        shape = "×".join(map(str, row.shape)) or "1"
        verdict = "ok" if row.passes else f"DIFFERS (more than {row.tolerance:.0e})"
        lines.append(
            f"{row.name:{width}}  {shape:>18}  {row.max_abs:9.2e}  {row.relative:9.2e}  {verdict}"
        )
    return "\n".join(lines)


def changed_tensors(ours: dict[str, str], recorded: dict[str, str]) -> list[str]:
    """Names whose digests differ, or that only one side has."""
    names = sorted(set(ours) | set(recorded))
    return [name for name in names if ours.get(name) != recorded.get(name)]


def weights_rows(changed: Sequence[str], count: int, name: str = "the file") -> list[Row]:
    """A row that does not pass if weights are not those of the trace: they may be nudged by so
    little, or where a softmax does not see it, that no block tells. Its error counts tensors."""
    if not changed:
        return []
    different = float(len(changed))
    return [Row(f"weights of {name}: {changed[0]}", (count,), different, different, 0.0)]


def weights_note(changed: Sequence[str], count: int, name: str = "the file") -> str:
    """What is said of them."""
    if not changed:
        return f"weights: all {count} tensors of {name} are those of the trace, bit for bit"
    shown = ", ".join(changed[:4]) + (", ..." if changed[4:] else "")
    return (
        f"weights: {len(changed)} of {count} tensors of {name} are not those of the trace: {shown}"
    )
