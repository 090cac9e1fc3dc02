"""How far each stage of Karlo's sampling is from what the machine can do.

    python benchmarks/roofline.py [--width 0.125] [--batch 4] [--dtype float32] [--rounds 3]

The machine's limits are measured in the same run: a large matrix product, and a copy. A stage's
floor is the longer of its products at that rate and of its weights read once a network call;
activations are left out, so a stage of many small layers cannot reach it. The last column is the
share of the floor in the time taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

from benchmarks.karlo_weights import karlo_recipes, write_karlo
from benchmarks.sampling import PROMPTS, STAGES, draw_noise, our_side
from benchmarks.side_by_side import machine
from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.sampling_plan import sampling_programs
from unclip_jax.training.planning.chips import peak_flops
from unclip_jax.training.planning.flops import forward_flops
from unclip_jax.training.stages import init_params

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs=3, default=[25, 25, 7])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="a folder to keep the random weights in")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS / "roofline.json")
    options = parser.parse_args()
    rate, bandwidth = product_rate(options.dtype), copy_rate()
    print(f"products {rate / 1e12:.3g} TFLOP/s, copies {bandwidth / 1e9:.3g} GB/s", end="")
    published = peak_flops(jax.devices()[0].device_kind)
    print("" if published is None else f"; published {published / 1e12:.0f} TFLOP/s in bfloat16")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.weights or Path(scratch) / "karlo"
        if not (folder / "prior").is_dir():
            write_karlo(folder, options.width)
        print("\n| stage | s | TFLOP | TFLOP/s | floor: products | weights | reached |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for stage in options.stages:
            seconds, (flops, weights) = _seconds(stage, folder, options), _work(stage, options)
            floors = flops / rate, weights / bandwidth
            reached = max(floors) / seconds
            found[stage] = {
                "seconds": seconds,
                "flops": flops,
                "weight_bytes": weights,
                "reached": reached,
            }
            print(
                f"| {stage} | {seconds:.3g} | {flops / 1e12:.3g} | {flops / seconds / 1e12:.3g} "
                f"| {floors[0]:.3g} s | {floors[1]:.3g} s | {reached:.0%} |",
                flush=True,
            )
    kept = ("width", "batch", "steps", "stages", "rounds", "dtype")
    settings = {name: getattr(options, name) for name in kept}
    data = {"machine": machine(), "settings": settings, "flops": rate, "bytes": bandwidth}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**data, "stages": found}, indent=1) + "\n")


def _seconds(stage: str, folder: Path, options: argparse.Namespace) -> float:
    """The median run of a stage alone, compiled before."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.batch)]
    alone = argparse.Namespace(**{**vars(options), "stages": [stage]})
    _, run = our_side(alone, folder, prompts, draw_noise(options, options.batch))
    run()
    return statistics.median(run()[stage] for _ in range(options.rounds))


def _work(stage: str, options: argparse.Namespace) -> tuple[int, float]:
    """Operations of a batch, and bytes of weights read if every step reads them once."""
    recipes: Any = karlo_recipes(options.width)
    steps = options.steps[STAGES.index(stage)]
    recipe = recipes["upsampler_256" if stage == "upsampler" else stage]
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    width = 2 if options.dtype == "bfloat16" else 4
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    flops = 0
    for program, params, row in sampling_programs(recipe, recipes["clip"], _how(steps)):
        rows = {**row, "is_real": jax.ShapeDtypeStruct((), bool)}
        shaped = {
            name: jax.ShapeDtypeStruct((options.batch, *leaf.shape), leaf.dtype)
            for name, leaf in rows.items()
        }
        flops += forward_flops(program.run, params, shaped)
    return flops, float(size * width * steps)


def _how(steps: int) -> SamplingConfig:
    plain = SamplerConfig(method="ddpm", num_steps=steps)
    guided = SamplerConfig(method="ddpm", num_steps=steps, guidance_scale=4.0, thresholding="none")
    return SamplingConfig(
        prior=guided, decoder=guided, upsampler_256=plain, num_candidates=1, upsample_batch_size=1
    )


def product_rate(dtype: str) -> float:
    """Operations a second of a matrix product that fills the machine."""
    side = 8192 if jax.default_backend() == "gpu" else 2048
    a = jnp.ones((side, side), dtype)
    return 2 * side**3 / _best(jax.jit(jnp.matmul), a, a)


def copy_rate() -> float:
    """Bytes a second, read and written."""
    a = jnp.ones(2**27, jnp.float32)
    return 2 * a.nbytes / _best(jax.jit(lambda x: x + 1), a)


def _best(run: Callable[..., Any], *arrays: Any) -> float:
    jax.block_until_ready(run(*arrays))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        times.append(time.perf_counter() - began)
    return float(np.min(times))


if __name__ == "__main__":
    main()
