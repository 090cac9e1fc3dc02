"""docs/findings.md: the tables between its marks, and the plots, from the results.

What is said about the numbers is written by hand around the marks:

    <!-- table conditioning -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "findings.md"
Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, Callable[[Sequence[float]], str]]] = {
    "kid": ("KID × 1000", lambda v: _plain(v, 1)),
    "precision": ("precision", lambda v: _plain(v, 2)),
    "recall": ("recall", lambda v: _plain(v, 2)),
    "coverage": ("coverage", lambda v: _plain(v, 2)),
    "diversity": ("diversity", lambda v: _plain(v, 2)),
    "r_precision": ("own caption of 100", lambda v: _percent(v)),
    "thing": ("thing of 100", lambda v: _percent(v)),
    "style": ("style of 4", lambda v: _percent(v)),
    "clip_score": ("CLIP score", lambda v: _plain(v, 1)),
    "cosine": ("cosine to the true embedding", lambda v: _plain(v, 3)),
    "cosine_to_text": ("cosine to the text", lambda v: _plain(v, 3)),
    "gain": ("gain over one draw", lambda v: _plain(v, 4)),
    "r1": ("own picture first", lambda v: _percent(v)),
    "judge_cosine": ("judge's cosine to the picture", lambda v: _plain(v, 3)),
    "ssim": ("SSIM to the picture", lambda v: _plain(v, 3)),
    "ssim_of_two": ("SSIM of two draws", lambda v: _plain(v, 3)),
    "new_style": ("in the style asked for", lambda v: _percent(v)),
    "old_style": ("in its own style", lambda v: _percent(v)),
    "all_right": ("all right", lambda v: _percent(v)),
    "colours": ("colours right", lambda v: _percent(v)),
    "shapes": ("shapes right", lambda v: _percent(v)),
    "colours_swapped": ("shapes right, colours swapped", lambda v: _percent(v)),
    "things_swapped": ("things swapped", lambda v: _percent(v)),
    "right": ("right", lambda v: _percent(v)),
    "read": ("reads the letter", lambda v: _percent(v)),
}


def write(results: Path) -> None:
    """Fill the marks of the page that have a result, and draw the plots again."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in results.glob("*.json")}
    text = PAGE.read_text(encoding="utf-8")

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in found:
            return match[0]
        return f"<!-- table {name} -->\n{table(found[name])}\n<!-- end -->"

    text = re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")
    if "guidance" in found:
        plot_guidance(found["guidance"]["rows"], DOCS / "pictures" / "findings_guidance.svg")
    if "rival" in found:
        plot_rival(found["rival"]["rows"], DOCS / "pictures" / "findings_rival.svg")


def table(result: dict[str, Any]) -> str:
    """A Markdown table of a finding's rows, and what it was measured on."""
    rows = result["rows"]
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [["", *(COLUMNS[name][0] for name in names)], ["---"] * (len(names) + 1)]
    for row in rows:
        cells = [COLUMNS[name][1](row[name]) if name in row else "" for name in names]
        lines.append([row["name"], *cells])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    stages = ", ".join(f"{name} {step}" for name, step in result["stages"].items())
    return (
        f"{body}\n\n{result['prompts']} prompts of `{result['split']}`, {result['steps']} decoder "
        f"steps, guidance {result['guidance']:g} unless said; 95 % intervals. Training steps: "
        f"{stages}."
    )


def plot_guidance(rows: Sequence[Row], path: Path) -> None:
    """KID, recall and diversity over the guidance scale, a line for each way of drawing."""
    figure, axes = _figure(3)
    titles = (
        ("kid", "KID × 1000"),
        ("r_precision", "own caption of 100"),
        ("diversity", "diversity"),
    )
    for axis, (score, title) in zip(axes, titles, strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            _line(axis, [row for row in rows if row["way"] == way], "scale", score, way)
        axis.set_xlabel("guidance scale")
        axis.set_title(title)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


def plot_rival(rows: Sequence[Row], path: Path) -> None:
    """KID and R-precision over the minutes of training, a line for each implementation."""
    figure, axes = _figure(2)
    titles = (("kid", "KID × 1000"), ("r_precision", "own caption of 100"))
    for axis, (score, title) in zip(axes, titles, strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            _line(axis, [row for row in rows if row["way"] == way], "minutes", score, way)
        axis.set_xlabel("minutes of training on two CPU cores")
        axis.set_title(title)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


def _figure(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "findings"  # the same file for the same numbers
    from matplotlib import pyplot

    return pyplot.subplots(1, count, figsize=(4 * count, 3.2), layout="constrained")


def _line(axis: Any, rows: Sequence[Row], over: str, score: str, label: str) -> None:
    values = [row[score] for row in rows]
    reach = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
    places = [row[over] for row in rows]
    axis.errorbar(places, [v[0] for v in values], yerr=reach, marker="o", capsize=3, label=label)


def _plain(value: Sequence[float], digits: int) -> str:
    middle, low, high = (f"{one:.{digits}f}" for one in value)
    return f"{middle} ({low} to {high})"


def _percent(value: Sequence[float]) -> str:
    middle, low, high = (f"{100 * one:.0f}" for one in value)
    return f"{middle} % ({low} to {high})"
