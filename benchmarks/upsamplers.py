"""Is an upsampled picture nearer to the truth than a resized one?

    python benchmarks/upsamplers.py --upsampler runs/upsampler_256 [--rows 32]

The data are vectors, so the same held-out emoji drawn at both sizes are input and truth. For the
upsampler and for bicubic resizing: PSNR in dB, and the cosine of CLIP's embeddings with the true
picture's, of whole pictures (which CLIP sees at its own size) and of their tiles of that size (in
which it sees what an upsampler adds; tiles that are of one colour do not count). A sheet: small,
bicubic, upsampler, truth.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unclip_jax.data.images import make_grid, save_png
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.generation.keys import image_keys
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.weights import load_clip, load_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--upsampler", required=True, help="run or exported folder")
    parser.add_argument("--clip", default="emoji", help="measures the cosines")
    parser.add_argument("--split", default="test_cells")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--sheet", default="upsampled.png")
    options = parser.parse_args()
    stage: Any = load_stage(options.upsampler)
    side = stage.recipe.data.image_size
    unclip = UnCLIP({"clip": load_clip(options.clip), f"upsampler_{side}": stage})
    sampling = unclip.sampling
    if options.steps:
        changed = replace(getattr(sampling, f"upsampler_{side}"), num_steps=options.steps)
        sampling = replace(sampling, **{f"upsampler_{side}": changed})
    truth = load_pictures(options.split, side, limit=options.rows).images
    small = load_pictures(options.split, side // 4, limit=options.rows).images
    bicubic = _resize(small, side)
    drawn = unclip.upsample(small, image_keys(0, range(len(small))), side, sampling)
    recipe: Any = unclip.clip.recipe
    tiles = _tiles(truth, recipe.model.image_size)
    busy = tiles.std(axis=(1, 2, 3)) > 1
    known, known_tiles = unclip.encode_image(truth), unclip.encode_image(tiles[busy])
    print(f"{len(truth)} pictures of {options.split}, {busy.sum()} tiles")
    print("| | PSNR | CLIP cosine | of tiles |\n| --- | --- | --- | --- |")
    for name, images in (("bicubic", bicubic), ("upsampler", drawn)):
        error = np.mean((images.astype(float) - truth) ** 2, axis=(1, 2, 3))
        psnr = np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
        cosine = np.mean(np.sum(unclip.encode_image(images) * known, axis=1))
        own = unclip.encode_image(_tiles(images, recipe.model.image_size)[busy])
        of_tiles = np.mean(np.sum(own * known_tiles, axis=1))
        print(f"| {name} | {psnr:.2f} | {cosine:.4f} | {of_tiles:.4f} |", flush=True)
    rows = range(min(4, len(truth)))
    sheet = [
        x[i] for i in rows for x in (_resize(small, side, Image.NEAREST), bicubic, drawn, truth)
    ]
    save_png(Path(options.sheet), make_grid(np.stack(sheet), 4))
    print(f"sheet in {options.sheet}")


def _resize(images: np.ndarray, side: int, how: Any = Image.BICUBIC) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(x).resize((side, side), how)) for x in images])


def _tiles(images: np.ndarray, side: int) -> np.ndarray:
    """[N, S, S, 3] → [N (S / side)^2, side, side, 3]."""
    count = images.shape[1] // side
    tiles = images.reshape(len(images), count, side, count, side, 3)
    return tiles.swapaxes(2, 3).reshape(-1, side, side, 3)


if __name__ == "__main__":
    main()
