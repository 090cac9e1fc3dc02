"""Two or more sides timed in turns in one run: what every benchmark beside another library is.

A machine that slows down slows all sides down, so what is told is the ratio within a round, not
seconds of one side against seconds of another day.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

OURS = "unclip_jax"
Parts = dict[str, float]
"""Seconds by what they were spent on."""
PACKAGES = (
    *("jax", "flax", "optax", "torch", "diffusers", "transformers", "dalle2-pytorch"),
    *("numpy", "grain", "webdataset"),
)


@dataclass(frozen=True)
class Row:
    """One thing, timed on every side, round by round."""

    name: str
    seconds: dict[str, list[float]]
    """By side; ours is among them."""

    def ratios(self, side: str) -> list[float]:
        """How many times faster ours was than `side`, in each round."""
        pairs = zip(self.seconds[side], self.seconds[OURS], strict=True)
        return [theirs / ours for theirs, ours in pairs]


def take_turns(sides: Mapping[str, Callable[[], Parts]], rounds: int) -> list[Row]:
    """Every side once in every round, in an order that turns around, after one round that is not
    counted.

    Args:
        sides: by name, what runs once and says the seconds of its parts, the same parts on each.
    """
    times: dict[str, dict[str, list[float]]] = {}
    for number in range(-1, rounds):
        order = list(sides) if number % 2 else list(reversed(sides))
        for side in order:
            for part, seconds in sides[side]().items():
                if number >= 0:
                    times.setdefault(part, {name: [] for name in sides})[side].append(seconds)
    return [Row(part, seconds) for part, seconds in times.items()]


def timed(run: Callable[[], Any]) -> Callable[[], Parts]:
    """A run of one part."""

    def measure() -> Parts:
        began = time.perf_counter()
        run()
        return {"": time.perf_counter() - began}

    return measure


def check_alike(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    """Prints how far apart the two are and ends the run beyond the tolerance: root mean squares of
    the difference relative to theirs. A chain's first steps divide by nearly nothing and clip, so
    that a single pixel may go either way."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
    largest = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name}: same within {error:.1e}, at most {largest:.1e}", flush=True)
    if not error <= tolerance:
        raise SystemExit(f"{name}: outputs differ by {error:.1e}, {tolerance:.0e} is allowed")


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Minimum, median and maximum of each side, and the ratio's."""
    print(f"\n{title}\n\n| what | side | s min | median | max | ours is faster by |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        for side, seconds in row.seconds.items():
            ratio = "" if side == OURS else _spread(row.ratios(side), "×")
            numbers = " | ".join(f"{value:.3g}" for value in _three(seconds))
            print(f"| {row.name} | {side} | {numbers} | {ratio} |", flush=True)


def save(path: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """All seconds, with what they were measured on."""
    data = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "settings": dict(settings),
        "rows": [
            {
                "name": row.name,
                "seconds": {side: [round(s, 5) for s in row.seconds[side]] for side in row.seconds},
                "ratio": {
                    side: round(statistics.median(row.ratios(side)), 4)
                    for side in row.seconds
                    if side != OURS
                },
            }
            for row in rows
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"\nwritten to {path}")


def machine() -> dict[str, Any]:
    """Device, cores and versions."""
    import jax

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def _spread(values: Sequence[float], unit: str) -> str:
    low, middle, high = _three(values)
    return f"**{middle:.2f} {unit}** ({low:.2f} to {high:.2f})"
