"""Peak memory of each stage of Karlo's architecture, beside diffusers.

    python benchmarks/memory.py [--width 0.125] [--batch 2]

Each stage of each side runs one step of its chain in a process of its own, weights read from disk
included, and says the largest resident set (on a GPU the largest allocation). What the imports take
is subtracted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIDES = ("unclip_jax", "diffusers")
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="a folder to keep the random weights in")
    parser.add_argument("--device", default="cpu", help="of torch: cpu or cuda")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_peak(options, *options.child)))
        return

    from benchmarks.karlo_weights import write_karlo
    from benchmarks.side_by_side import machine

    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.weights or Path(scratch) / "karlo"
        if not (folder / "prior").is_dir():
            write_karlo(folder, options.width)
        for stage in ("prior", "decoder", "upsampler"):
            found[stage] = {}
            for side in SIDES:
                command = [sys.executable, __file__, "--child", side, stage]
                command += ["--width", str(options.width), "--batch", str(options.batch)]
                command += ["--weights", str(folder), "--device", options.device]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[stage][side] = json.loads(said.splitlines()[-1])
    print("| stage | unclip_jax, GB | diffusers, GB | ratio |\n| --- | ---: | ---: | ---: |")
    for stage, peaks in found.items():
        ours, theirs = (peaks[side] / 1e9 for side in SIDES)
        print(f"| {stage} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} |")
    settings = {"width": options.width, "batch": options.batch}
    data = {"machine": machine(), "settings": settings, "bytes": found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(data, indent=1) + "\n")


def _peak(options: argparse.Namespace, side: str, stage: str) -> float:
    """Bytes."""
    import jax

    from benchmarks.sampling import PROMPTS, draw_noise, our_side, their_side

    options.steps, options.stages, options.dtype = [1, 1, 1], [stage], "float32"
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.batch)]
    noise = draw_noise(options, options.batch)
    if side == "diffusers":
        import benchmarks.rivals.diffusers_karlo  # noqa: F401
    jax.devices()
    before = _resident()
    if side == "unclip_jax":
        _, run = our_side(options, options.weights, prompts, noise)
    else:
        _, run = their_side(options, options.weights, prompts, noise, is_compiled=False)
    run()
    statistics = jax.devices()[0].memory_stats()
    if options.device == "cuda" and side == "diffusers":
        import torch

        return float(torch.cuda.max_memory_allocated())
    if statistics and "peak_bytes_in_use" in statistics:
        return float(statistics["peak_bytes_in_use"])
    return _resident() - before


def _resident() -> float:
    """The largest resident set so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
