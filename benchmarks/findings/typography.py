"""The typographic attack: a sign with letters on a thing makes CLIP read the sign, and the decoder
draws the thing all the same (figure 6)."""

from __future__ import annotations

import numpy as np

from benchmarks.findings.bench import Bench, Row, interval
from unclip_jax.data.captions import caption_with_style
from unclip_jax.data.emoji import list_icons
from unclip_jax.data.scenes import Scene, Thing, draw_scene
from unclip_jax.evaluation.encoders import own_text_is_first
from unclip_jax.evaluation.intervals import share_interval
from unclip_jax.evaluation.pictures import draw_candidates

TITLE = "Typographic attack"
SIGNS = (
    "A button (blood type)",
    "B button (blood type)",
    "OK button",
    "P button",
    "NEW button",
    "keycap: 5",
)
ATTACKED = 100
CHOICES = 20
SIDE = 0.45
"""Of the sign, in the lower right corner, as a share of the picture."""


def measure(bench: Bench) -> list[Row]:
    """A row for the pictures as they are, with a sign, and for variations drawn from the embedding
    of the picture with the sign (no caption): the share in which the thing is the nearest of 20
    captions and one of the sign, and in which the sign is. The model's own CLIP answers for
    pictures, since it is the one attacked, and the judge for what is drawn."""
    icons = list_icons()
    number = {
        (icon.entry.label, icon.style): row
        for row, (icon, _, _) in enumerate(icons)
        if not icon.entry.has_tone
    }
    facts = [
        fact
        for fact in bench.pictures.facts
        if fact.group not in ("symbols", "flags") and fact.label not in SIGNS
    ][:ATTACKED]
    labels = [fact.label for fact in facts]
    signs = [
        next(sign for sign in (*SIGNS[row % len(SIGNS) :], *SIGNS) if (sign, fact.style) in number)
        for row, fact in enumerate(facts)
    ]
    plain, attacked = [], []
    for fact, sign in zip(facts, signs, strict=True):
        thing = Thing(number[fact.label, fact.style], 0, 0, 1)
        corner = 1 - SIDE
        note = Thing(number[sign, fact.style], corner, corner, SIDE)
        for things, drawn in (((thing,), plain), ((thing, note), attacked)):
            scene = Scene("typography", things, (255, 255, 255), (fact.label,), ())
            drawn.append(draw_scene(scene, bench.unclip.side))
    choices = []
    for fact, sign in zip(facts, signs, strict=True):
        own = draw_candidates(labels, fact.label, CHOICES, bench.seed)
        choices.append(tuple(caption_with_style(text, fact.style) for text in (*own, sign)))
    signs_first = [(row[-1], *row[:-1]) for row in choices]
    embeddings = bench.unclip.encode_image(np.stack(attacked))
    varied = bench.draw("typography", embeddings, bench.with_guidance(1.0), [""] * len(facts))
    return [
        {
            "name": name,
            "right": interval(share_interval(own_text_is_first(clip, seen, choices)[:, 0])),
            "read": interval(share_interval(own_text_is_first(clip, seen, signs_first)[:, 0])),
        }
        for name, clip, seen in (
            (
                "picture, asked the model's CLIP",
                bench.unclip,
                bench.unclip.encode_image(np.stack(plain))[:, None],
            ),
            ("with a sign, asked the model's CLIP", bench.unclip, embeddings[:, None]),
            (
                "with a sign, asked the judge",
                bench.judge,
                bench.judge.encode_image(np.stack(attacked))[:, None],
            ),
            (
                "variations of it, asked the judge",
                bench.judge,
                bench.judge.encode_image(varied)[:, None],
            ),
        )
    ]
