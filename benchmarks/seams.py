"""Does the border show between a picture and what outpainting adds to it?

    python benchmarks/seams.py [--model emoji --rows 12 --resamples 1,2,5 --blends 0,8]

The left five eighths of emoji at the decoder's side are continued to the right, without a prompt
and with the caption (not from the middle: many emoji have their axis there and hardly change). For
each number of resamples and each blend: the step across the border over the mean of those beside it
(1 is no seam), the share of those that are smaller (0.5 is no seam), how many borders are the
largest step of all, the same of the pictures before they were cut, PSNR of the new part against the
old one, and the seconds of drawing. A sheet: the pictures, then a row for each line of the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unclip_jax.data.images import make_grid, save_png
from unclip_jax.diffusion.inpainting import Resampling
from unclip_jax.editing.joining import join
from unclip_jax.editing.repainting import repaint_sampling
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.evaluation.seams import find_seams
from unclip_jax.pipeline import UnCLIP


def main() -> None:
    parser = argparse.ArgumentParser(description="outpainting's seams")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--split", default="train")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--resamples", default="1,2,5")
    parser.add_argument("--blends", default="0,8")
    parser.add_argument("--sheet", default="seams.png")
    options = parser.parse_args()
    unclip = UnCLIP.load(options.model)
    side, concepts = unclip.side, unclip.stage("decoder").recipe.data.concepts  # pyright: ignore
    cut = 5 * side // 8
    truth = load_pictures(options.split, side, concepts, options.rows)
    how = replace(repaint_sampling(unclip.sampling), batch_size=1)
    print(f"{len(truth.images)} pictures of {options.split}")
    print("| | step at the border | smaller | largest of all | PSNR | seconds |\n|" + " --- |" * 6)
    report("as they were", truth.images, truth.images, cut, 0.0)
    sheet = [truth.images]
    known = np.arange(side)[None].repeat(side, 0) < cut
    for captions in ([""] * len(truth.images), truth.captions):
        for resamples in map(int, options.resamples.split(",")):
            began = time.monotonic()
            drawn = [
                unclip.outpaint(
                    image[:, :cut],
                    caption,
                    1,
                    0,
                    how,
                    right=side - cut,
                    resampling=Resampling(5, resamples),
                    blend=0,
                ).images
                for image, caption in zip(truth.images, captions, strict=True)
            ]
            seconds = time.monotonic() - began
            name = f"{'with the caption' if captions[0] else 'no prompt'}, resamples {resamples}"
            for blend in map(float, options.blends.split(",")):
                images = np.concatenate(drawn)
                if blend:  # what `outpaint(blend=...)` does with its one window
                    images = join(images, known, reach=blend)
                sheet.append(images)
                report(f"{name}, blend {blend:g}", images, truth.images, cut, seconds)
    save_png(options.sheet, make_grid(np.concatenate(sheet), len(truth.images)))


def report(name: str, images: np.ndarray, truth: np.ndarray, cut: int, seconds: float) -> None:
    """One line of the table."""
    seams = [find_seams(image, (0, 0, len(image), cut))[0] for image in images]
    ratio = np.mean([seam.border for seam in seams]) / np.mean([seam.lines for seam in seams])
    rank = np.mean([seam.rank for seam in seams])
    largest = sum(seam.rank == 1 for seam in seams)
    error = np.mean((images.astype(float) - truth)[:, :, cut:] ** 2, axis=(1, 2, 3))
    psnr = np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
    shown = "" if images is truth else f"{psnr:.1f} dB"
    print(
        f"| {name} | {ratio:.2f} | {rank:.2f} | {largest} | {shown} | {seconds:.0f} |", flush=True
    )


if __name__ == "__main__":
    main()
