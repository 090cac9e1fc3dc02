"""How near each sampler comes to the exact path of the decoder's flow, and how well it inverts.

    python benchmarks/samplers.py [--model emoji] [--rows 32] [--reference-steps 500]

From the same initial noises and conditions, unguided: the RMSE of each sampler's pictures to those
of DDIM with `reference-steps` steps, over all and of the median picture, in units of the pixel
range [-1, 1]. Then DDIM inversion of pictures that were held out, followed by DDIM: PSNR of the
reconstruction in dB.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.generation.captions import encode_caption
from unclip_jax.generation.decoder import Condition, decode_embedding, invert_picture
from unclip_jax.generation.keys import image_keys
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.objectives.conditions import to_float

SAMPLERS = (
    ("ddim", 25, "respaced"),
    ("ddim", 50, "respaced"),
    ("ddim", 100, "respaced"),
    ("dpm_solver", 25, "respaced"),
    ("dpm_solver", 15, "log_snr"),
    ("dpm_solver", 25, "log_snr"),
    ("unipc", 15, "log_snr"),
    ("unipc", 25, "log_snr"),
)
"""Method, steps and where they lie."""
INVERSIONS = ((50, 0), (100, 0), (50, 3))
"""Steps, and fixed-point iterations a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--reference-steps", type=int, default=500)
    parser.add_argument("--out", default=None, help="also write the numbers as JSON")
    options = parser.parse_args()
    unclip = UnCLIP.load(options.model)
    recipe: Any = unclip.stage("decoder").recipe
    params = unclip.stage("decoder").params
    clip: Any = unclip.clip.recipe
    held_out = load_pictures("test_cells", recipe.model.unet.image_size, limit=options.rows)
    texts = held_out.captions
    condition = Condition(
        jnp.asarray(unclip.encode_image(held_out.images)),
        *(
            encode_caption(clip.model, unclip.clip.params, jnp.asarray(unclip.tokenizer(given)))
            for given in (texts, [""])
        ),
    )
    keys = image_keys(0, range(len(texts)))
    shape = held_out.images.shape
    noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)

    def draw(config: SamplerConfig, start: Any) -> np.ndarray:
        run = jax.jit(lambda given, x_T: decode_embedding(recipe, params, given, config, x_T=x_T))
        return np.asarray(run(condition, start))

    plain = SamplerConfig(method="ddim", num_steps=options.reference_steps)
    began = time.monotonic()
    exact = draw(plain, noise)
    print(f"DDIM {options.reference_steps} steps: {time.monotonic() - began:.0f} s", flush=True)
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "rows": len(texts)}
    print("| sampler | steps | spacing | RMSE | median |\n| --- | --- | --- | --- | --- |")
    for method, steps, spacing in SAMPLERS:
        config = replace(plain, method=method, num_steps=steps, spacing=spacing)
        squares = np.mean((draw(config, noise) - exact) ** 2, axis=(1, 2, 3))
        error, median = float(np.sqrt(squares.mean())), float(np.sqrt(np.median(squares)))
        result[f"{method} {steps} {spacing}"] = {"rmse": error, "median": median}
        print(f"| {method} | {steps} | {spacing} | {error:.4f} | {median:.4f} |", flush=True)

    images = to_float(jnp.asarray(held_out.images))
    print("\n| inversion steps | iterations | PSNR |\n| --- | --- | --- |")
    for steps, iterations in INVERSIONS:
        config = replace(plain, num_steps=steps, iterations=iterations)
        invert = jax.jit(
            lambda given, images, config=config: invert_picture(
                recipe, params, given, config, images
            )
        )
        again = draw(config, invert(condition, images))
        error = np.mean((again - np.asarray(images)) ** 2, axis=(1, 2, 3))
        psnr = float(np.mean(10 * np.log10(4 / error)))
        result[f"inversion {steps} x {iterations}"] = psnr
        print(f"| {steps} | {iterations} | {psnr:.1f} |", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
