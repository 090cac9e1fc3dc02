"""Holes filled by the decoder that was trained for it, and by RePaint with the plain one.

    python benchmarks/inpainting.py --inpaint runs/decoder_inpaint [--model emoji --rows 12]

Emoji at the decoder's side with random masks of another key than training's and no full ones; the
caption's embedding by the prior, the same keys for all. For each way: calls of the network a
picture, PSNR of what was drawn in the hole against what was there, CLIP's cosine of the whole
picture with the caption, and seconds. A sheet: the pictures, what is kept of them, a row a way.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unclip_jax.data.images import make_grid, save_png
from unclip_jax.diffusion.inpainting import Resampling, make_walk
from unclip_jax.editing.repainting import repaint_sampling
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.generation.keys import fold_keys, image_keys
from unclip_jax.generation.model_folder import read_model
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.masks import MaskConfig, random_masks
from unclip_jax.training.weights import load_stage


def main() -> None:
    parser = argparse.ArgumentParser(description="trained inpainting against RePaint")
    parser.add_argument("--inpaint", required=True)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--split", default="train")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--resamples", default="1,5")
    parser.add_argument("--sheet", default="inpainting.png")
    options = parser.parse_args()
    stages, sampling = read_model(options.model, as_stored=True)
    plain = UnCLIP(stages, replace(sampling, batch_size=4))
    trained = load_stage(options.inpaint, as_stored=True)
    tuned = UnCLIP({**stages, "decoder_inpaint": trained}, plain.sampling)
    concepts = plain.stage("decoder").recipe.data.concepts  # pyright: ignore
    truth = load_pictures(options.split, plain.side, concepts, options.rows)
    images, texts = truth.images, truth.captions
    config = MaskConfig(full=0)
    keep = np.asarray(random_masks(jax.random.key(12345), images.shape[:3], config))
    keys = image_keys(0, range(len(images)))
    embeddings = plain.sample_prior(texts, keys)
    words = plain.encode_text(texts)

    def report(name: str, calls: int, drawn: np.ndarray, began: float) -> None:
        error = (drawn.astype(float) - images) ** 2
        hole = ~keep[..., 0]
        psnr = [
            10 * np.log10(255**2 / max(e[h].mean(), 1e-3)) for e, h in zip(error, hole, strict=True)
        ]
        cosine = np.sum(plain.encode_image(drawn) * words, axis=1).mean()
        shown = f"{np.mean(psnr):.2f} dB" if calls else ""
        seconds = time.monotonic() - began
        print(f"| {name} | {calls} | {shown} | {cosine:.4f} | {seconds:.0f} |", flush=True)

    ddpm = repaint_sampling(plain.sampling)
    ways = [
        ("trained, ddim", tuned, plain.sampling, None),
        ("trained, ddpm", tuned, ddpm, None),
        *(
            (f"RePaint, resamples {n}", plain, ddpm, Resampling(5, n))
            for n in map(int, options.resamples.split(","))
        ),
    ]
    print(f"{len(images)} pictures of {options.split}, {1 - keep.mean():.0%} erased")
    print("| | calls | PSNR in the hole | CLIP's cosine | seconds |\n|" + " --- |" * 5)
    sheet = [images, np.where(keep, images, 127).astype(np.uint8)]
    report("as they were", 0, images, time.monotonic())
    for name, model, how, resampling in ways:
        began, steps = time.monotonic(), how.decoder.num_steps
        drawn = model.decode_known(
            images, keep, embeddings, texts, fold_keys(keys, 1), how, resampling
        )
        calls = steps if resampling is None else int((~make_walk(steps, resampling).is_back).sum())
        report(name, calls, drawn, began)
        sheet.append(drawn)
        save_png(options.sheet, make_grid(np.concatenate(sheet), len(images)))


if __name__ == "__main__":
    main()
