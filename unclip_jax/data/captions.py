"""What a picture is called: several captions a picture, one of which is drawn for each example.

An emoji's captions come from its label, its tags, its group and its style. Six in ten name the
style, the rest leave it out so that unstyled prompts work; half are the bare label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STYLE_SHARE = 0.6
"""Share of emoji captions that name the style."""

_FORMS = (
    (0.50, "{label}"),
    (0.14, "{article}{label}"),
    (0.12, "an emoji of {label}"),
    (0.14, "{label}, {tags}"),
    (0.10, "{label}, {group}"),
)
"""(share, form) of an emoji's caption without its style."""


@dataclass(frozen=True)
class EmojiFacts:
    """What is known about an emoji picture; captions are made from it."""

    label: str
    """CLDR short name: 'woman astronaut: dark skin tone'."""
    concept: str
    """Label of the base emoji: 'astronaut'."""
    style: str
    """noto, twemoji, flat or 3d."""
    tags: tuple[str, ...]
    group: str
    """One of ten: 'food & drink'."""
    subgroup: str
    slug: str
    split: str
    """train, test or test_cells."""


def caption_with_style(label: str, style: str) -> str:
    """The caption that evaluation uses: 'red apple, 3d style'."""
    return f"{label}, {style} style"


def draw_caption(captions: Sequence[str] | EmojiFacts, rng: np.random.Generator) -> str:
    """One caption of a picture; the same one for the same state of `rng`.

    Args:
        captions: the captions as given, each as likely as the next, or the facts of an emoji.
    """
    if not isinstance(captions, EmojiFacts):
        return captions[int(rng.integers(len(captions)))] if len(captions) > 1 else captions[0]
    facts = captions
    form_draw, style_draw = rng.random(2)
    text = _fill(_pick_form(form_draw), facts, rng)
    return caption_with_style(text, facts.style) if style_draw < STYLE_SHARE else text


def all_captions(captions: Sequence[str] | EmojiFacts) -> tuple[str, ...]:
    """Captions of a picture, without draws: as given, or an emoji's forms with and without style.

    Text corpora (the small tokenizer's) are made of these.
    """
    if not isinstance(captions, EmojiFacts):
        return tuple(captions)
    texts = [_fill(form, captions, None) for _, form in _FORMS]
    return tuple(texts) + tuple(caption_with_style(text, captions.style) for text in texts)


def _pick_form(draw: float) -> str:
    for share, form in _FORMS:
        if draw < share:
            return form
        draw -= share
    return _FORMS[0][1]


def _fill(form: str, facts: EmojiFacts, rng: np.random.Generator | None) -> str:
    """The form with the emoji's words; tags are drawn, or all of them where `rng` is None."""
    if "{tags}" in form:
        tags = facts.tags
        if rng is not None and len(tags) > 2:
            tags = tuple(tags[i] for i in rng.permutation(len(tags))[: 1 + int(rng.integers(2))])
        return f"{facts.label}, {', '.join(tags)}" if tags else facts.label
    return form.format(
        label=facts.label, article=_article(facts.label, facts.group), group=facts.group
    )


def _article(label: str, group: str) -> str:
    """'a ' or 'an ', or nothing before a plural, a name, a sign or a flag."""
    word = label.split(":")[0]
    if group in ("symbols", "flags") or ":" in label or not word[0].islower():
        return ""
    if word.endswith("s") and not word.endswith("ss"):
        return ""
    return "an " if re.match(r"hour|(?!uni|one|eu)[aeiou]", word) else "a "
