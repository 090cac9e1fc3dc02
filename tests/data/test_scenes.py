"""Scenes are what their captions say, the same everywhere, and held-out words never meet."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from unclip_jax.config import DataConfig
from unclip_jax.data.captions import EmojiFacts
from unclip_jax.data.emoji import list_icons
from unclip_jax.data.emoji_render import render_svg
from unclip_jax.data.emoji_splits import fraction
from unclip_jax.data.images import BadImage, decode_image
from unclip_jax.data.scenes import (
    COLOURS,
    COUNT,
    HELD_FRACTION,
    KINDS,
    NUMBERS,
    Scene,
    SceneSource,
    Thing,
    draw_scene,
    plural,
)
from unclip_jax.data.sources import open_source
from unclip_jax.errors import UserError

SPLITS = ("train", "test_cells", "test")


@pytest.fixture(scope="module")
def sources() -> dict[str, SceneSource]:
    return {split: SceneSource(DataConfig(source="scenes", split=split)) for split in SPLITS}


def scenes_of(source: SceneSource, kind: str, count: int = 10) -> list[Scene]:
    """The first scenes of a kind."""
    found = (scene for scene in map(source.scene, range(COUNT)) if scene.kind == kind)
    return [next(found) for _ in range(count)]


def test_kinds_have_their_shares(sources: dict[str, SceneSource]) -> None:
    kinds = Counter(sources["train"].scene(number).kind for number in range(2000))
    for kind, share in KINDS.items():
        assert abs(kinds[kind] / 2000 - share) < 0.04, kind


def test_a_scene_is_its_number(sources: dict[str, SceneSource]) -> None:
    again = open_source(DataConfig(source="scenes"))
    for number in (0, 7, 123_456, COUNT - 1):
        one, other = sources["train"][number], again[number]
        assert one == other and one.name == f"scenes/train/{number}"
    assert len(again) == COUNT
    with pytest.raises(IndexError):
        again[COUNT]
    captions = sources["train"].scene(1).captions
    assert isinstance(captions, tuple)
    assert captions[1] == "disappointed face on a gray background, 3d style"  # as released


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_cells_stay_held_out(split: str, sources: dict[str, SceneSource]) -> None:
    icons = list_icons()
    for number in range(400):
        scene = sources[split].scene(number)
        of = {icons[thing.icon][2] for thing in scene.things}
        if scene.kind == "one":
            assert of == {split}
            continue
        assert of == {"test" if split == "test" else "train"}
        assert len({icons[thing.icon][0].style for thing in scene.things}) == 1
        if split != "test":
            held = any(fraction(cell) < HELD_FRACTION for cell in scene.cells)
            assert held == (split == "test_cells")


def test_pairs_lie_as_they_say(sources: dict[str, SceneSource]) -> None:
    icons, seen = list_icons(), set()
    for scene in scenes_of(sources["train"], "pair", 60):
        assert isinstance(scene.captions, tuple)
        a, b = scene.things
        names = [icons[thing.icon][0].entry.label for thing in (a, b)]
        text, reverse = scene.captions[:2]
        assert text.startswith(names[0]) and text.endswith(names[1])
        assert reverse.startswith(names[1]) and reverse.endswith(names[0])
        words = text[len(names[0]) : -len(names[1])].strip()
        seen.add(words)
        assert {
            "to the left of": a.left + a.side <= b.left,
            "to the right of": b.left + b.side <= a.left,
            "above": a.top + a.side <= b.top,
            "below": b.top + b.side <= a.top,
        }[words]
        assert all(
            0 <= place <= 1 - thing.side for thing in (a, b) for place in (thing.top, thing.left)
        )
    assert len(seen) == 4


def test_as_many_as_they_say_and_apart(sources: dict[str, SceneSource]) -> None:
    for scene in scenes_of(sources["train"], "count", 20):
        assert isinstance(scene.captions, tuple)
        assert scene.captions[0].split()[0] == NUMBERS[len(scene.things)]
        assert len({thing.icon for thing in scene.things}) == 1
        taken = np.zeros((64, 64), int)
        for thing in scene.things:
            top, left, side = (round(64 * part) for part in (thing.top, thing.left, thing.side))
            taken[top : top + side, left : left + side] += 1
        assert taken.max() == 1


def test_backgrounds_are_of_their_colour(sources: dict[str, SceneSource]) -> None:
    for scene in scenes_of(sources["train"], "colour", 20):
        assert isinstance(scene.captions, tuple)
        colour = scene.captions[0].split()[-2]
        picture = draw_scene(scene, 64)
        assert (picture[0] == COLOURS[colour]).all() and (picture[-1] == COLOURS[colour]).all()
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1


def test_an_icon_alone_is_the_emoji(sources: dict[str, SceneSource]) -> None:
    scene = scenes_of(sources["train"], "one", 1)[0]
    assert isinstance(scene.captions, EmojiFacts) and scene.captions.split == "train"
    _, svg, _ = list_icons()[scene.things[0].icon]
    expected = decode_image(render_svg(svg, 64), name="icon").astype(int)
    assert np.abs(draw_scene(scene, 64) - expected).max() <= 1
    beside = Scene("pair", (Thing(scene.things[0].icon, 0.25, 0.5, 0.5),), (255, 255, 255), (), ())
    drawn = draw_scene(beside, 128)
    assert np.abs(drawn[32:96, 64:].astype(int) - expected).max() <= 1
    assert (drawn[:, :64] == 255).all() and (drawn[:32] == 255).all()


def test_plurals() -> None:
    words = {"red apple": "red apples", "box": "boxes", "lady": "ladies", "monkey": "monkeys"}
    assert {word: plural(word) for word in words} == words


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"split": "tain"}, "data.split is 'tain': scenes have train, test, test_cells"),
        ({"concepts": ("red aple",)}, "no emoji concept is called 'red aple'"),
        ({"concepts": ("red apple", "guitar")}, "name 20 or more"),
    ],
)
def test_a_mistake_is_one_line(config: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        SceneSource(DataConfig(source="scenes", **config))  # pyright: ignore[reportArgumentType]
    assert not isinstance(error.value, BadImage)
