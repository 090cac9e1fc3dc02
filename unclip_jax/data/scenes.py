"""Emoji composed into scenes with exact captions: several things, where, how many, on what.

A picture of one emoji never asks which word belongs to which thing. A scene does: "red apple to the
left of guitar, 3d style". Every scene is a function of its split and its number, so that the data
set is as good as endless, and reading it in any order, on any host, gives the same pictures.

Two in five are single emoji with their own captions. The rest is drawn of icons of the split train:

- pair: two things beside or above each other. The cell is the pair of concepts.
- count: two, three or four of one thing. The cell is the concept and the number.
- colour: one thing on a coloured background. The cell is the concept and the colour.
- row: three things side by side. The cells are its pairs.

Cells whose hash is below 10 % are held out: test_cells has those and nothing else, train has none,
so that a model that draws them binds words that it never saw together. Scenes of the split test are
made of concepts that train never shows.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unclip_jax.config import DataConfig
from unclip_jax.data.captions import EmojiFacts, caption_with_style
from unclip_jax.data.emoji import list_icons
from unclip_jax.data.emoji_catalogue import Icon
from unclip_jax.data.emoji_render import render_svg
from unclip_jax.data.emoji_splits import SPLITS, fraction
from unclip_jax.data.images import decode_image, encode_png
from unclip_jax.data.records import Record
from unclip_jax.errors import UserError

COUNT = 1_000_000
"""Scenes of a split."""
LEAST = 20
"""Concepts of each style: with fewer, a kind of scene may have no held-out cell."""
HELD_FRACTION = 0.10
KINDS = {"one": 0.40, "pair": 0.30, "count": 0.12, "colour": 0.12, "row": 0.06}
"""Share of each kind."""
RELATIONS = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
"""What a is to b, and b then to a."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
COLOURS = {
    "red": (229, 57, 53),
    "orange": (251, 140, 0),
    "yellow": (253, 216, 53),
    "green": (67, 160, 71),
    "blue": (30, 136, 229),
    "purple": (142, 36, 170),
    "brown": (121, 85, 72),
    "black": (33, 33, 33),
    "gray": (158, 158, 158),
}
"""sRGB of the backgrounds, in 0 ... 255."""
_WHITE = (255, 255, 255)
_KEPT = 8192
"""Drawings of single icons that are kept in memory."""


@dataclass(frozen=True)
class Thing:
    """An icon and where it is."""

    icon: int
    """Its number in `list_icons`."""
    top: float
    left: float
    side: float
    """As fractions of the picture's side."""


@dataclass(frozen=True)
class Scene:
    """What is drawn, and what it is called."""

    kind: str
    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    captions: tuple[str, ...] | EmojiFacts
    cells: tuple[str, ...]
    """What is held out or not; none of a single emoji."""


class SceneSource:
    """Scenes of one split, drawn when they are read.

    Args:
        config: `split`, `image_size` and `concepts` are read.
    Raises:
        UserError: no such split or concept, or too few concepts for a scene.
    """

    def __init__(self, config: DataConfig) -> None:
        if config.split not in SPLITS:
            raise UserError(f"data.split is {config.split!r}: scenes have {', '.join(SPLITS)}")
        self._split, self._size = config.split, config.image_size
        icons = _plain_icons()
        wanted = set(config.concepts)
        if unknown := wanted - {icon.entry.concept for _, icon, _ in icons}:
            raise UserError(f"data.concepts: no emoji concept is called {min(unknown)!r}")
        parts = "test" if config.split == "test" else "train"
        self._single, self._composed = (
            [
                (number, icon)
                for number, icon, split in icons
                if split == of and (not wanted or icon.entry.concept in wanted)
            ]
            for of in (config.split, parts)
        )
        self._by_style: dict[str, list[tuple[int, Icon]]] = {}
        for number, icon in self._composed:
            self._by_style.setdefault(icon.style, []).append((number, icon))
        if not self._by_style:
            raise UserError(f"data.concepts: none has a picture in split {parts!r}")
        for style, members in self._by_style.items():
            concepts = {icon.entry.concept for _, icon in members}
            if len(concepts) < LEAST or not any(_is_countable(icon) for _, icon in members):
                raise UserError(
                    f"data.concepts: {len(concepts)} of {parts!r} in {style} style are too few "
                    f"for scenes: name {LEAST} or more, things among them"
                )

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int, /) -> Record:
        scene = self.scene(index)
        return Record(self.name(index), encode_png(draw_scene(scene, self._size)), scene.captions)

    def name(self, index: int) -> str:
        """Of a scene."""
        return f"scenes/{self._split}/{index}"

    def scene(self, index: int) -> Scene:
        """A scene by its number, the same on every machine."""
        if not 0 <= index < COUNT:
            raise IndexError(index)
        rng = np.random.default_rng([SPLITS.index(self._split), index])
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        if kind == "one" and self._single:
            number, icon = self._single[int(rng.integers(len(self._single)))]
            return Scene("one", (Thing(number, 0, 0, 1),), _WHITE, _facts(icon, self._split), ())
        kind = "pair" if kind == "one" else kind
        while True:
            style = str(rng.choice(list(self._by_style)))
            scene = _DRAW[kind](self._by_style[style], rng)
            is_held = [fraction(cell) < HELD_FRACTION for cell in scene.cells]
            # A row of test_cells has a held-out pair; one of train has none.
            if self._split == "test" or any(is_held) == (self._split == "test_cells"):
                return scene


def draw_scene(scene: Scene, size: int) -> np.ndarray:
    """[size, size, 3] uint8."""
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = scene.background
    for thing in scene.things:
        side = round(thing.side * size)
        top, left = (min(round(place * size), size - side) for place in (thing.top, thing.left))
        ink, clear = _layer(thing.icon, side)
        place = canvas[top : top + side, left : left + side]
        place[:] = np.minimum(ink + np.round(clear * place).astype(np.int32), 255)
    return canvas


_Pool = Sequence[tuple[int, Icon]]


def _pair(pool: _Pool, rng: np.random.Generator) -> Scene:
    (first, a), (second, b) = _different(pool, 2, rng)
    relation = str(rng.choice(list(RELATIONS)))
    is_beside = "the" in relation
    ahead, behind, across = 0.01, 0.51, 0.26 + 0.16 * (rng.random(2) - 0.5)
    places = [(ahead, behind), (behind, ahead)][relation in ("to the right of", "below")]
    boxes = [(across[k], places[k]) if is_beside else (places[k], across[k]) for k in (0, 1)]
    things = tuple(
        Thing(n, top, left, 0.48) for n, (top, left) in zip((first, second), boxes, strict=True)
    )
    texts = (
        f"{a.entry.label} {relation} {b.entry.label}",
        f"{b.entry.label} {RELATIONS[relation]} {a.entry.label}",
    )
    return Scene("pair", things, _WHITE, _styled(texts, a.style), (_cell(a, b),))


def _count(pool: _Pool, rng: np.random.Generator) -> Scene:
    countable = [one for one in pool if _is_countable(one[1])]
    number, icon = countable[int(rng.integers(len(countable)))]
    count = int(rng.choice(list(NUMBERS)))
    places = {
        2: ((0.26, 0.02), (0.26, 0.52)),
        3: ((0.02, 0.27), (0.52, 0.02), (0.52, 0.52)),
        4: ((0.02, 0.02), (0.02, 0.52), (0.52, 0.02), (0.52, 0.52)),
    }[count]
    things = tuple(Thing(number, top, left, 0.46) for top, left in places)
    text = f"{NUMBERS[count]} {plural(icon.entry.label)}"
    cell = f"{NUMBERS[count]} times {icon.entry.concept}"
    return Scene("count", things, _WHITE, _styled((text,), icon.style), (cell,))


def _colour(pool: _Pool, rng: np.random.Generator) -> Scene:
    number, icon = pool[int(rng.integers(len(pool)))]
    colour = str(rng.choice(list(COLOURS)))
    article = "an" if colour[0] in "aeiou" else "a"
    text = f"{icon.entry.label} on {article} {colour} background"
    thing = Thing(number, 0.1, 0.1, 0.8)
    cell = f"{icon.entry.concept} on {colour}"
    return Scene("colour", (thing,), COLOURS[colour], _styled((text,), icon.style), (cell,))


def _row(pool: _Pool, rng: np.random.Generator) -> Scene:
    chosen = _different(pool, 3, rng)
    things = tuple(Thing(n, 0.34, 0.01 + 0.33 * k, 0.32) for k, (n, _) in enumerate(chosen))
    a, b, c = (icon.entry.label for _, icon in chosen)
    cells = tuple(_cell(x, y) for (_, x), (_, y) in itertools.combinations(chosen, 2))
    texts = _styled((f"{a}, {b} and {c} in a row",), chosen[0][1].style)
    return Scene("row", things, _WHITE, texts, cells)


_DRAW = {"pair": _pair, "count": _count, "colour": _colour, "row": _row}


def plural(label: str) -> str:
    """'two' and this: 'red apples', 'boxes', 'cherries'."""
    if label.endswith(("s", "x", "z", "ch", "sh")):
        return f"{label}es"
    if label.endswith("y") and label[-2] not in "aeiou":
        return f"{label[:-1]}ies"
    return f"{label}s"


def _is_countable(icon: Icon) -> bool:
    """Names, signs and what is a plural already have no number; 'two women judges' is too hard."""
    label = icon.entry.label
    is_plain = label.replace(" ", "").replace("-", "").isalpha() and label.islower()
    is_plain = is_plain and not {"and", "in", "of", "on", "with"} & set(label.split())
    is_thing = icon.entry.group not in ("symbols", "flags", "people & body")
    return is_plain and is_thing and not label.endswith("s")


def _different(pool: _Pool, count: int, rng: np.random.Generator) -> list[tuple[int, Icon]]:
    """Icons of so many different concepts."""
    found: dict[str, tuple[int, Icon]] = {}
    while len(found) < count:
        number, icon = pool[int(rng.integers(len(pool)))]
        found.setdefault(icon.entry.concept, (number, icon))
    return list(found.values())


def _cell(a: Icon, b: Icon) -> str:
    return " with ".join(sorted((a.entry.concept, b.entry.concept)))


def _styled(texts: Sequence[str], style: str) -> tuple[str, ...]:
    return (*texts, *(caption_with_style(text, style) for text in texts))


def _facts(icon: Icon, split: str) -> EmojiFacts:
    entry = icon.entry
    return EmojiFacts(
        label=entry.label,
        concept=entry.concept,
        style=icon.style,
        tags=entry.tags,
        group=entry.group,
        subgroup=entry.subgroup,
        slug=icon.slug,
        split=split,
    )


@lru_cache(maxsize=1)
def _all_icons() -> list[tuple[Icon, str, str]]:
    return list_icons()


def _plain_icons() -> list[tuple[int, Icon, str]]:
    """Those without a skin tone: number, icon, split."""
    everything = enumerate(_all_icons())
    return [(n, icon, split) for n, (icon, _, split) in everything if not icon.entry.has_tone]


_DRAWING = threading.Lock()


@lru_cache(maxsize=_KEPT)
def _layer(icon: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An icon to be laid over anything: over a colour c it looks ink + clear * c.

    Returns:
        ink [side, side, 3] int32 in 0 ... 255, and clear [side, side, 3] float32 in 0 ... 1.
    """
    svg = _all_icons()[icon][1]
    with _DRAWING:  # resvg holds Python's lock all the same
        on_black, on_white = (
            decode_image(render_svg(svg, side, background), name="drawing").astype(np.int32)
            for background in ("#000000", "#ffffff")
        )
    return on_black, ((on_white - on_black) / 255).clip(0, 1).astype(np.float32)
