"""The four priors beside each other: how near is what they draw to the true picture's embedding?

    python benchmarks/priors.py [--model emoji] [--add one_step_prior=runs/one_step_prior ...]

On emoji pictures that were held out, one draw a caption and best of 2: the cosine of the drawn and
the true image embedding, the share of captions whose own picture is the nearest of all to what was
drawn, and the cosine of two draws for the same caption (1 draws always the same). The text
embedding itself is the baseline of having no prior.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.evaluation.scores import paired_cosine, recall_at, same
from unclip_jax.generation.keys import image_keys
from unclip_jax.generation.programs import PRIORS
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.weights import load_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--add", nargs="*", default=[], metavar="STAGE=FOLDER")
    parser.add_argument("--split", default="test_cells")
    parser.add_argument("--rows", type=int, default=None)
    options = parser.parse_args()
    unclip = UnCLIP.load(options.model)
    added = {name: load_stage(path) for name, path in (text.split("=") for text in options.add)}
    sampling = replace(unclip.sampling, batch_size=32)
    unclip = UnCLIP({**unclip.stages, **added}, sampling)
    pictures = load_pictures(options.split, 64, limit=options.rows)
    captions, image = pictures.captions, unclip.encode_image(pictures.images)
    relevant = same(captions, captions)
    print(f"{len(captions)} pictures of {options.split}")
    print("| prior | cosine | best of 2 | own picture first | two draws |")
    print("| --- | --- | --- | --- | --- |")
    text = unclip.encode_text(captions)
    first = recall_at(text @ image.T, relevant, 1)
    print(f"| text embedding | {paired_cosine(text, image):.3f} | | {first:.1%} | 1 |", flush=True)

    def draw(name: str, number: int, candidates: int) -> Any:
        how = replace(sampling, num_candidates=candidates)
        keys = image_keys(number, range(len(captions)))
        return unclip.sample_prior(captions, keys, how, name)

    for name, stage in PRIORS.items():
        if stage not in unclip.stages:
            continue
        one, other = draw(name, 0, 1), draw(name, 1, 1)
        best = draw(name, 2, 2)
        share = recall_at(one @ image.T, relevant, 1)
        cosines = (paired_cosine(one, image), paired_cosine(best, image))
        seeds = float(np.mean(np.sum(one * other, axis=1)))
        print(
            f"| {name} | {cosines[0]:.3f} | {cosines[1]:.3f} | {share:.1%} | {seeds:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
