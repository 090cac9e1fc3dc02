"""Is anything slower than it was, beside its rival? Ratios against the committed ones.

    python benchmarks/check.py [sampling emoji training input chains]

Runs each benchmark again with the settings of benchmarks/results/NAME.json and compares its ratios,
not seconds: those of another machine say little. A row fails where its median ratio has dropped by
more than the rounds of both runs are apart, and by more than a tenth. Exit code 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import OURS

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
NAMES = ("sampling", "emoji", "training", "input", "chains")
SLACK = 0.1
"""A ratio may drop by so much whatever the rounds say."""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=list(NAMES))
    names = parser.parse_args().names
    failed = []
    for name in names:
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            print(f"{name}: no committed result, run benchmarks/{name}.py", file=sys.stderr)
            raise SystemExit(2)
        failed += _check(name, json.loads(path.read_text()))
    print("\n" + ("\n".join(failed) if failed else "nothing is slower than it was"))
    raise SystemExit(bool(failed))


def _check(name: str, before: dict[str, Any]) -> list[str]:
    """What has become slower."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "now.json"
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--out", str(out)]
        for option, value in before["settings"].items():
            values = value if isinstance(value, list) else [value]
            command += [f"--{option.replace('_', '-')}", *map(str, values)]
        subprocess.run(command, check=True)
        now = json.loads(out.read_text())
    devices = [one["machine"]["device"] for one in (before, now)]
    if devices[0] != devices[1]:
        print(
            f"{name}: committed for {devices[0]}, this was {devices[1]} (on a CPU "
            "XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two)",
            file=sys.stderr,
        )
        raise SystemExit(2)
    then = {row["name"]: row["seconds"] for row in before["rows"]}
    found = {row["name"]: row["seconds"] for row in now["rows"]}
    failed = []
    for row, seconds in then.items():
        for side in seconds:
            if side == OURS:
                continue
            if side not in found.get(row, {}):
                failed.append(f"{name}, {row}, {side}: was not measured")
                continue
            was, spread = ratio(seconds, side)
            is_now, spread_now = ratio(found[row], side)
            allowed = max(SLACK, spread, spread_now)
            verdict = "slower" if is_now < was * (1 - allowed) else "ok"
            line = f"{name}, {row}, {side}: {was:.2f} × before, {is_now:.2f} × now"
            print(f"{verdict:6} {line} (allowed: -{allowed:.0%})", flush=True)
            if verdict == "slower":
                failed.append(line)
    return failed


def ratio(seconds: dict[str, list[float]], side: str) -> tuple[float, float]:
    """The median ratio, and how far apart the rounds are as a part of it."""
    pairs = zip(seconds[side], seconds[OURS], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    middle = statistics.median(ratios)
    return middle, (max(ratios) - min(ratios)) / 2 / middle


if __name__ == "__main__":
    main()
