"""What a model is measured on: true emoji pictures, prompts, and the captions to choose from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unclip_jax.config import DataConfig
from unclip_jax.data.captions import EmojiFacts, caption_with_style
from unclip_jax.data.emoji_catalogue import STYLES
from unclip_jax.data.images import decode_image, resize_and_crop
from unclip_jax.data.sources import open_source
from unclip_jax.errors import UserError


@dataclass(frozen=True)
class Pictures:
    """True pictures with what is known about each."""

    images: np.ndarray
    """[N, S, S, 3] uint8."""
    facts: tuple[EmojiFacts, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption of each that names label and style."""
        return tuple(caption_with_style(fact.label, fact.style) for fact in self.facts)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each picture shows."""
        return tuple(fact.label for fact in self.facts)

    def take(self, rows: Sequence[int]) -> Pictures:
        """The pictures of some rows, in their order."""
        return Pictures(self.images[list(rows)], tuple(self.facts[row] for row in rows))


def load_pictures(
    split: str, size: int, concepts: tuple[str, ...] = (), limit: int | None = None
) -> Pictures:
    """Emoji pictures of a split, without skin tones.

    Args:
        size: side in pixels.
        concepts: only these; empty takes all.
        limit: at most so many, evenly spaced over the split.
    Raises:
        UserError: no such split or concept.
    """
    source = open_source(DataConfig(split=split, image_size=size, concepts=concepts))
    images, facts = [], []
    for row in _spaced(len(source), limit or len(source)):
        record = source[row]
        assert isinstance(record.captions, EmojiFacts)
        picture = decode_image(record.image, name=record.name)
        images.append(resize_and_crop(picture, size))
        facts.append(record.captions)
    return Pictures(np.stack(images), tuple(facts))


def choose_prompts(facts: Sequence[EmojiFacts], count: int) -> list[int]:
    """Rows for `count` prompts: different concepts, evenly spaced, the styles in turn.

    Depends on nothing but the pictures and their order.

    Raises:
        UserError: there are fewer concepts than prompts.
    """
    cells: dict[str, dict[str, int]] = {}
    for row, fact in enumerate(facts):
        cells.setdefault(fact.concept, {}).setdefault(fact.style, row)
    concepts = list(cells)
    if not 1 <= count <= len(concepts):
        raise UserError(f"--num-prompts is {count}: give 1 to {len(concepts)}, a concept each")
    chosen: list[int] = []
    styles, taken = list(STYLES), set[str]()
    for number, start in enumerate(_spaced(len(concepts), count)):
        style = styles[number % len(styles)]
        # Some cells are held out: then the next concept that has the style, at worst any style.
        around = [c for c in concepts[start:] + concepts[:start] if c not in taken]
        concept = next((c for c in around if style in cells[c]), around[0])
        taken.add(concept)
        chosen.append(cells[concept].get(style, next(iter(cells[concept].values()))))
    return chosen


def find_prompts(facts: Sequence[EmojiFacts], prompts: Sequence[str]) -> list[int]:
    """The rows of the pictures that the prompts name, as 'LABEL, STYLE style'.

    Raises:
        UserError: a prompt that is no picture's caption, or one that is given twice.
    """
    rows = {caption_with_style(fact.label, fact.style): row for row, fact in enumerate(facts)}
    if len(set(prompts)) < len(prompts):
        raise UserError("--prompts names a picture twice: give each prompt once")
    for prompt in prompts:
        if prompt not in rows:
            near = difflib.get_close_matches(prompt, rows, 1)
            hint = f"did you mean {near[0]!r}?" if near else "give them as 'red apple, 3d style'"
            raise UserError(f"--prompts: {prompt!r} is no caption of the split; {hint}")
    return [rows[prompt] for prompt in prompts]


def draw_candidates(pool: Sequence[str], own: str, count: int, seed: int) -> tuple[str, ...]:
    """`own` first, then `count - 1` other texts of the pool, each once, drawn by seed and text.

    All others where the pool has fewer.
    """
    others = sorted(set(pool) - {own})
    rng = np.random.default_rng([seed, *own.encode()])
    drawn = rng.permutation(len(others))[: count - 1]
    return (own, *(others[index] for index in drawn))


def style_candidates(fact: EmojiFacts) -> tuple[str, ...]:
    """The captions of one label in all styles, its own first."""
    styles = (fact.style, *(style for style in STYLES if style != fact.style))
    return tuple(caption_with_style(fact.label, style) for style in styles)


def _spaced(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, evenly spaced, without repetition."""
    count = min(total, count)
    return [int(index) for index in np.linspace(0, total, count, endpoint=False)]
