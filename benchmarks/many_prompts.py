"""Memory and speed of a long sampling job, thousand by thousand, with a kill in between.

    python benchmarks/many_prompts.py [--count 10000 --steps 2 --format png|tar]

A random decoder of a few thousand parameters draws --count prompts, each with a seed of its own,
through `sample.py text --prompts`; after half of them the job is killed (SIGKILL) and the same
command started again. The table has pictures a second and the resident memory of the process for
every thousand pictures, as seen from outside. At the end every picture must be there, once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
THINGS = ("apple", "car", "tree", "guitar", "rocket", "fish")


def write_model(folder: Path) -> None:
    """CLIP and decoder of configs/toy, as they are initialised."""
    import jax

    from unclip_jax.cli.overrides import load_recipe
    from unclip_jax.data.tokenizer import train_bpe
    from unclip_jax.training.stages import init_params
    from unclip_jax.training.weights import Stage, save_stage, weights_id

    tokenizer, clip_id = train_bpe(THINGS, 600, 12), ""
    for name in ("clip", "decoder"):
        recipe = load_recipe(str(REPOSITORY / "configs" / "toy" / f"{name}.py"))
        params = init_params(recipe, jax.random.key(0))
        clip_id = clip_id or weights_id(params)
        save_stage(Stage(recipe, params, tokenizer, 0, clip_id), folder / name, "float32")


def write_prompts(path: Path, count: int) -> None:
    """A line a picture, with a seed and a guidance scale of its own."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            row = {"prompt": f"{draw.choice(THINGS)} number {number}", "n": 1, "seed": number}
            file.write(json.dumps({**row, "guidance": draw.choice((2.0, 3.0, 4.0))}) + "\n")


def memory_of(process: int) -> float:
    """Resident memory in MB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1000 for x in lines if x.startswith("VmRSS")), 0.0)


def watch(command: list[str], manifest: Path, done: int, kill_at: int, count: int) -> int:
    """Run the job and print its table; the pictures that are done when it has ended."""
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    since, start, file = time.monotonic(), done, None
    next_row, memory, first = done + 1000, 0.0, None
    while process.poll() is None:
        time.sleep(0.02)
        memory = memory_of(process.pid) or memory
        if file is None and manifest.exists():
            file = manifest.open("rb")
            file.seek(0, os.SEEK_END if start else os.SEEK_SET)
        done += file.read().count(b"\n") if file is not None and done < count else 0
        if first is None and done > start:
            first = time.monotonic()
            print(f"first picture after {first - since:.1f} s")
            since = first
        if done >= next_row:
            now = time.monotonic()
            print(f"{done:7} {1000 / (now - since):8.1f} {memory:8.0f}", flush=True)
            since, next_row = now, next_row + 1000
        if start < kill_at <= done:
            process.kill()
            print(f"killed at {done}")
            break
    said = process.communicate()[0]
    print(said, end="")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--format", choices=("png", "tar"), default="png")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        write_model(folder / "model")
        write_prompts(folder / "prompts.jsonl", options.count)
        out = folder / "out"
        command = [sys.executable, "sample.py", "text", "--prompts", str(folder / "prompts.jsonl")]
        command += ["--model", str(folder / "model"), "--out", str(out), "--prior", "none"]
        command += ["--steps", str(options.steps), "--batch-size", "16", "--format", options.format]
        print("pictures  a second   MB")
        manifest = out / "manifest.jsonl"
        done = watch(command, manifest, 0, options.count // 2, options.count)
        watch(command, manifest, done, options.count + 1, options.count)
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        assert len({row["path"] for row in rows}) == len(rows) == options.count
        print(f"{options.count} lines in the manifest, each of another picture")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
