"""Text diffs: a picture's embedding moved towards the difference of two captions changes what the
captions differ in, and keeps the rest (section 3.3). Here each picture is asked into another
style."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.findings.bench import Bench, Row, interval
from unclip_jax.data.captions import caption_with_style
from unclip_jax.data.emoji_catalogue import STYLES
from unclip_jax.editing.latents import ITERATIONS
from unclip_jax.editing.slerp import slerp
from unclip_jax.evaluation.encoders import own_text_is_first
from unclip_jax.evaluation.intervals import share_interval

TITLE = "Text diffs"
THETAS = (0.0, 0.15, 0.3, 0.45, 0.6)
ROWS = 60


def measure(bench: Bench) -> list[Row]:
    """A row for each angle: the judge's share of pictures in the style that was asked for, in the
    old one, and of those that still show their thing."""
    facts, images = bench.pictures.facts[:ROWS], bench.pictures.images[:ROWS]
    own = bench.embeddings[:ROWS]
    styles = list(STYLES)
    wanted = [styles[(styles.index(fact.style) + 1) % len(styles)] for fact in facts]
    before = [caption_with_style(fact.label, fact.style) for fact in facts]
    after = [
        caption_with_style(fact.label, style) for fact, style in zip(facts, wanted, strict=True)
    ]
    step = bench.unclip.encode_text(after) - bench.unclip.encode_text(before)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    texts = [""] * len(facts)
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
        "inverted", [images, decoder], lambda: bench.unclip.invert(images, own, texts, how)
    )
    in_style = [
        (new, *(caption_with_style(fact.label, style) for style in styles if style != name))
        for new, fact, name in zip(after, facts, wanted, strict=True)
    ]
    as_was = [
        (old, *(caption_with_style(fact.label, style) for style in styles if style != fact.style))
        for old, fact in zip(before, facts, strict=True)
    ]
    things = [
        tuple(text.replace(f"{fact.style} style", f"{name} style") for text in row)
        for row, fact, name in zip(bench.questions.things[:ROWS], facts, wanted, strict=True)
    ]
    rows = []
    for theta in THETAS:
        moved = slerp(own, step, np.full(len(own), theta)).astype(np.float32)
        drawn = bench.draw(f"diff-{theta:g}", moved, how, texts, x_T=noise)
        seen = bench.judge.encode_image(drawn)[:, None]
        asked = {"new_style": in_style, "old_style": as_was, "thing": things}
        shares = {
            name: interval(share_interval(own_text_is_first(bench.judge, seen, candidates)[:, 0]))
            for name, candidates in asked.items()
        }
        rows.append({"name": f"θ = {theta:g}", "theta": theta, **shares})
    return rows
