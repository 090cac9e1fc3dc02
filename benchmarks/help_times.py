"""How long `--help` takes, for every verb of `unclip`, sample.py and train.py.

    python benchmarks/help_times.py [--repeats 5]

Prints the median wall time of each as a process of its own, and the slowest.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from unclip_jax.cli.verbs import SAMPLE, VERBS

ROOT = Path(__file__).resolve().parent.parent


def commands() -> dict[str, list[str]]:
    """The command lines after `python`, by what they are called in the table."""
    recipes = {name: f"configs/toy/{name}.py" for name in ("clip", "prior", "decoder", "upsampler")}
    return {
        "unclip": ["-m", "unclip_jax", "--help"],
        **{f"unclip {verb}": ["-m", "unclip_jax", verb, "--help"] for verb in VERBS},
        "sample.py": ["sample.py", "--help"],
        **{f"sample.py {verb}": ["sample.py", verb, "--help"] for verb in SAMPLE},
        "train.py": ["train.py", "--help"],
        **{
            f"train.py {name}": ["train.py", f"configs/toy/{name}.py", "--help"] for name in recipes
        },
    }


def seconds(arguments: list[str], repeats: int) -> float:
    """The median wall time."""
    found = []
    command = [sys.executable, *arguments]
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (%(default)s)")
    repeats = parser.parse_args().repeats
    times = {name: seconds(arguments, repeats) for name, arguments in commands().items()}
    width = max(map(len, times))
    for name, found in times.items():
        print(f"{name:{width}}  {found:5.2f} s")
    print(f"\nslowest: {max(times, key=lambda name: times[name])}, {max(times.values()):.2f} s")


if __name__ == "__main__":
    main()
