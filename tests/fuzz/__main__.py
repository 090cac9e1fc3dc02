"""python -m tests.fuzz TARGET|all [--seconds N] [--seed S] [--keep]: coverage-guided fuzzing.

Starts each target from its corpus (tests/fuzz/corpus/TARGET), lets libFuzzer mutate it for so long
and prints a table. An input that a parser does not survive is written to `fuzz-findings/`, to be
copied into the corpus with the mend; the exit code is then 1. --keep adds the inputs that reach new
code to the corpus. Needs atheris, for Linux: pip install atheris.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.corpus import CORPUS, FINDINGS

TIMEOUT = 10
"""Seconds that one input may take."""
MEMORY = 2048
"""MB that the process may take; JAX, which comes with the recipes, takes 400 of them."""


@dataclass(frozen=True)
class Fuzzed:
    """What became of a target."""

    target: str
    executions: int
    coverage: tuple[int, int]
    """Edges that the corpus reached, and that were reached in the end."""
    findings: list[Path]
    log: str


def main() -> int:
    """Fuzzes what was asked for."""
    if importlib.util.find_spec("atheris") is None:
        print("error: atheris is not installed: pip install atheris (Linux)", file=sys.stderr)
        return 2
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--seed", type=int, default=0, help="0 draws one")
    parser.add_argument("--keep", action="store_true", help="new inputs go to the corpus")
    options = parser.parse_args()
    results: list[Fuzzed] = []
    print("| target | executions | edges | findings |\n|---|---|---|---|")
    for target in TARGETS if options.target == "all" else [options.target]:
        one = fuzz(target, options.seconds, options.seed, options.keep)
        edges = " → ".join(map(str, one.coverage))
        print(f"| {target} | {one.executions:,} | {edges} | {len(one.findings)} |", flush=True)
        for path in one.findings:
            print(f"{path}: {one.log}", file=sys.stderr)
        results.append(one)
    return int(any(one.findings for one in results))


def fuzz(target: str, seconds: int, seed: int, keep: bool) -> Fuzzed:
    """One target, in a process of its own, from its corpus; stops at the first finding."""
    corpus = CORPUS / target
    corpus.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(exist_ok=True)
    before = set(FINDINGS.iterdir())
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{target}-") as found:
        flags = [f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}"]
        flags += [f"-seed={seed}", "-print_final_stats=1", f"-artifact_prefix={FINDINGS}/{target}-"]
        log = _guided(target, [*flags, found, str(corpus)])
        if keep:  # the fewest and smallest that reach what all of them reach
            _guided(target, ["-merge=1", f"-timeout={TIMEOUT}", str(corpus), found])
    edges = [int(n) for n in re.findall(r"\bcov: (\d+)", log)]
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", log)
    findings = sorted(set(FINDINGS.iterdir()) - before)
    if not edges:
        raise RuntimeError(f"{target} did not run:\n{log[-2000:]}")
    said = [line.strip() for line in log.splitlines() if re.match(r"\s*\w*(Error|ERROR)\b", line)]
    count = int(executions[1]) if executions else 0
    return Fuzzed(target, count, (edges[0], edges[-1]), findings, (said or [""])[0])


def _guided(target: str, options: list[str]) -> str:
    """What libFuzzer printed."""
    command = [sys.executable, "-m", "tests.fuzz.guided", target, *options]
    return subprocess.run(command, capture_output=True, text=True, errors="replace").stderr


if __name__ == "__main__":
    sys.exit(main())
