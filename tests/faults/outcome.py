"""What became of a fault that was tried, and the table of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One row of the table: a kind of fault, tried so many times."""

    fault: str
    """What was done, in a few words."""
    tried: int
    survived: int
    """How often everything that was promised held."""
    lost_steps: int | None = None
    """Most steps that had to be done again; None where no step can be lost."""
    seconds: float | None = None
    """Longest time from the restart to the first new step or picture; None where nothing restarts.
    """
    note: str = ""
    """What held, in a few words; of a failure, what did not."""


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, a line for each outcome."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    lines = ["| fault | tried | survived | lost steps | seconds to resume | what held |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [
        f"| {one.fault} | {one.tried} | {one.survived} | {cell(one.lost_steps)} "
        f"| {cell(one.seconds)} | {one.note} |"
        for one in outcomes
    ]
    return "\n".join(lines)
