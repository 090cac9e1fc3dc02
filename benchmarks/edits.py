"""What edits do to held-out pictures, measured.

    python benchmarks/edits.py [--model emoji] [--pairs 20] [--frames 5] [--sheet edits.png]

1. Reconstruction: PSNR in dB of `reconstruct`, and of the decoder's own drawing from the
   embedding with other noise, which only keeps what CLIP saw.
2. Interpolation of pairs: CLIP's cosine of each frame with the last picture minus that with the
   first; the share of steps at which it rises, and of pairs in which it rises at every step.
3. Text differences from a picture's caption to its partner's: the same with the cosines of the
   frame to the two captions.

Pairs are drawn by a fixed seed among things that the decoder of `emoji` knows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.emoji.decoder import CONCEPTS
from unclip_jax.data.images import make_grid, save_png
from unclip_jax.editing.drawing import edit_sampling
from unclip_jax.editing.settings import Vary
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.generation.keys import image_keys
from unclip_jax.pipeline import UnCLIP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--sheet", default=None, help="a row of pictures for each pair")
    options = parser.parse_args()
    unclip = UnCLIP.load(options.model)
    images, captions = _pictures(options.split, unclip.side, 2 * options.pairs)
    firsts, lasts = images[: options.pairs], images[options.pairs :]

    again = unclip.reconstruct(list(images)).images
    drawn = _from_embeddings(unclip, images)
    print(f"| {len(images)} pictures of {options.split} | PSNR, median | lowest |")
    print("| --- | --- | --- |")
    for name, made in (("reconstructed", again), ("embedding alone", drawn)):
        values = [_psnr(a, b) for a, b in zip(images, made, strict=True)]
        print(f"| {name} | {np.median(values):.1f} dB | {min(values):.1f} dB |")

    pairs = list(zip(firsts, lasts, strict=True))
    ways = [unclip.interpolate(pair, options.frames).images for pair in pairs]
    ends = [unclip.encode_image(np.stack(pair)) for pair in pairs]
    names = [(captions[i], captions[options.pairs + i]) for i in range(options.pairs)]
    diffs = [
        unclip.diff(first, to, away, options.frames).images
        for first, (away, to) in zip(firsts, names, strict=True)
    ]
    texts = [unclip.encode_text(list(pair)) for pair in names]
    print(
        f"\n| {options.pairs} pairs, {options.frames} frames | steps that rise | pairs that rise "
        "at every step | from | to |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, strips, anchors in (
        ("interpolations", ways, ends),
        ("text differences", diffs, texts),
    ):
        print(f"| {name} | {_rises(unclip, strips, anchors)} |")
    if options.sheet:
        rows = [np.concatenate(both) for both in zip(ways, diffs, strict=True)]
        save_png(options.sheet, make_grid(np.concatenate(rows), 2 * options.frames))


def _pictures(split: str, side: int, count: int) -> tuple[np.ndarray, list[str]]:
    """Of different things, in a fixed random order."""
    found = load_pictures(split, side, CONCEPTS)
    order = np.random.default_rng(0).permutation(len(found.images))
    seen: set[str] = set()
    chosen: list[int] = []
    for i in order:
        label = found.facts[i].label
        if label not in seen and len(chosen) < count:
            seen.add(label)
            chosen.append(int(i))
    return found.images[chosen], [found.captions[i] for i in chosen]


def _from_embeddings(unclip: UnCLIP, images: np.ndarray) -> np.ndarray:
    how = edit_sampling(Vary(0.0, "drawn"), unclip.sampling)
    keys = image_keys(0, range(len(images)))
    return unclip.decode(unclip.encode_image(images), [""] * len(images), keys, how)


def _psnr(truth: np.ndarray, made: np.ndarray) -> float:
    error = np.mean((truth.astype(float) - made) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _rises(unclip: UnCLIP, strips: list[np.ndarray], anchors: list[np.ndarray]) -> str:
    """Of the cosine with the second anchor minus that with the first."""
    steps, whole, starts, stops = [], [], [], []
    for strip, pair in zip(strips, anchors, strict=True):
        vectors, pair = (
            x / np.linalg.norm(x, axis=1, keepdims=True) for x in (unclip.encode_image(strip), pair)
        )
        leads = vectors @ pair[1] - vectors @ pair[0]
        rise = np.diff(leads) > 0
        steps.append(rise.mean())
        whole.append(rise.all())
        starts.append(leads[0])
        stops.append(leads[-1])
    return (
        f"{100 * np.mean(steps):.0f} % | {sum(whole)} of {len(whole)} | {np.mean(starts):+.2f} | "
        f"{np.mean(stops):+.2f}"
    )


if __name__ == "__main__":
    main()
