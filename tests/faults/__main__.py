"""python -m tests.faults [--rounds N] [AREA ...]: tries every fault and prints what survived.

The exit code is 1 if anything did not. A bounded part of the same runs in the test suite.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.outcome import Outcome, table

AREAS = ("training", "disk", "hosts", "sampling", "inputs")
"""Modules of this folder, each with `try_faults(rounds, folder)` → outcomes."""


def main() -> int:
    """Runs the areas asked for, one after another."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}")
    parser.add_argument("--rounds", type=int, default=20, help="random points of each kill")
    options = parser.parse_args()
    unknown = set(options.areas) - set(AREAS)
    if unknown:
        parser.error(f"{sorted(unknown)[0]}: choose of {', '.join(AREAS)}")
    outcomes: list[Outcome] = []
    for area in options.areas or AREAS:
        module = importlib.import_module(f"tests.faults.{area}")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            for outcome in module.try_faults(options.rounds, Path(folder)):
                outcomes.append(outcome)
                print(
                    f"{area}: {outcome.fault}: {outcome.survived}/{outcome.tried}", file=sys.stderr
                )
        print(f"{area}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(table(outcomes))
    return int(any(one.survived < one.tried for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
