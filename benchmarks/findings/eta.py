"""Variations against eta: DDIM from the inverted noise with eta 0 gives the picture back, with more
it keeps what the embedding says and draws the rest anew (section 3.1)."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.findings.bench import Bench, Row
from unclip_jax.editing.latents import ITERATIONS
from unclip_jax.evaluation.similarity import ssim

TITLE = "Variations against eta"
ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROWS = 60


def measure(bench: Bench) -> list[Row]:
    """A row for each eta, with the captions empty: how near variations are to the picture, and two
    of them to each other."""
    images, embeddings = bench.pictures.images[:ROWS], bench.embeddings[:ROWS]
    texts = [""] * len(images)
    judged = bench.judge.encode_image(images)
    decoder = replace(
        bench.how.decoder,
        method="ddim",
        spacing="respaced",
        guidance_scale=1.0,
        guidance_rescale=0.0,
        iterations=ITERATIONS,
    )
    how = replace(bench.how, decoder=decoder)
    noise = bench.keep(
        "inverted", [images, decoder], lambda: bench.unclip.invert(images, embeddings, texts, how)
    )
    rows = []
    for eta in ETAS:
        varied = replace(how, decoder=replace(decoder, eta=eta))
        pair = [
            bench.draw(f"eta-{eta:g}-{draw}", embeddings, varied, texts, draw, noise)
            for draw in range(2)
        ]
        rows.append(
            {
                "name": f"η = {eta:g}",
                "eta": eta,
                "ssim": bench.mean(ssim(pair[0], images)),
                "judge_cosine": bench.mean(
                    (bench.judge.encode_image(pair[0]) * judged).sum(axis=1)
                ),
                "ssim_of_two": bench.mean(ssim(*pair)),
            }
        )
    return rows
