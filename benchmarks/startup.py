"""How long a command takes to its first picture, cold and warm, and what of that is import.

    python benchmarks/startup.py [--rounds 3] [--model emoji]

Each is a process of its own. Cold has an empty cache folder, so everything is compiled; warm has
the folder that the cold run left. `import diffusers`'s pipelines with torch is what a PyTorch
user waits for before anything is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).resolve().parent / "results"
IMPORTS = {
    "import unclip_jax": "import unclip_jax",
    "from unclip_jax import UnCLIP": "from unclip_jax import UnCLIP",
    "import torch and diffusers' components": "import benchmarks.rivals.diffusers_karlo",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        found.setdefault("sample.py --help", []).append(_seconds(["sample.py", "--help"]))
        for name, code in IMPORTS.items():
            found.setdefault(name, []).append(_seconds(["-c", code]))
        with tempfile.TemporaryDirectory() as scratch:
            for kind in ("cold", "warm"):
                first, whole = _sample(options.model, Path(scratch), kind)
                found.setdefault(f"first picture, {kind}", []).append(first)
                found.setdefault(f"four pictures and exit, {kind}", []).append(whole)
    print("| what | s min | median | max |\n| --- | ---: | ---: | ---: |")
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {min(seconds):.2f} | {middle:.2f} | {max(seconds):.2f} |")

    from benchmarks.side_by_side import machine

    options.out.parent.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine(), "seconds": found}
    options.out.write_text(json.dumps(data, indent=1) + "\n")


def _seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=None
    )
    return time.perf_counter() - began


def _sample(model: str, folder: Path, kind: str) -> tuple[float, float]:
    """Seconds to the first picture on disk, and to the end of `make demo`'s command."""
    prompts = ["a red apple, 3d style", "a cat face, flat style"]
    prompts += ["a rocket, noto style", "a guitar, twemoji style"]
    out = folder / kind
    command = [sys.executable, "sample.py", "text", *prompts]
    command += ["--model", model, "--out", str(out)]
    environment = {**os.environ, "UNCLIP_CACHE": str(folder / "cache")}
    began, first = time.perf_counter(), 0.0
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if not first and any(out.glob("*.png")):
            first = time.perf_counter() - began
        time.sleep(0.01)
    assert process.returncode == 0, f"exit code {process.returncode}"
    whole = time.perf_counter() - began
    return first or whole, whole


if __name__ == "__main__":
    main()
