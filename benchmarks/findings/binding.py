"""Attribute binding: does "red circle above blue square" put the right colour on the right shape?
(Ramesh et al. 2022, section 7.1, figures 14 and 15: unCLIP mixes them up more than GLIDE does,
since CLIP's embedding does not say what belongs to what.)

    python -m benchmarks.findings.binding --work runs/binding

A small closed world: two emoji of three shapes and eight colours, beside or above each other, with
exact captions. One pair of concepts in ten is held out. CLIP, prior and decoder are trained on it
by train.py with the recipes of configs/emoji, an hour of two CPU cores; killed and started again,
it goes on. What is drawn for held-out captions is read off the pixels, without a network: the
colour of each half, and the shape that its ink covers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from unclip_jax.data.captions import caption_with_style
from unclip_jax.data.emoji import list_icons
from unclip_jax.data.emoji_catalogue import STYLES
from unclip_jax.data.emoji_splits import fraction
from unclip_jax.data.images import make_grid, save_png
from unclip_jax.data.scenes import RELATIONS, Scene, Thing, draw_scene

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
SHAPES = ("circle", "square", "heart")
HELD = 0.1
SIZE = 64
TRAIN, TEST = 4000, 200
STEPS = {"clip": 500, "prior": 1000, "decoder": 1500}
WHITE = (255, 255, 255)
INK = 40
"""Of 255: how far from white a pixel is inked."""


@dataclass(frozen=True)
class Pair:
    """Two things and where the first is to the second."""

    things: tuple[tuple[str, str], tuple[str, str]]
    """(colour, shape) of each."""
    relation: str
    style: str

    @property
    def caption(self) -> str:
        """As the scenes of the package have it."""
        first, second = (" ".join(thing) for thing in self.things)
        return caption_with_style(f"{first} {self.relation} {second}", self.style)

    @property
    def is_held_out(self) -> bool:
        """By the pair of concepts, whatever the order, the relation and the style."""
        return fraction(" with ".join(sorted(" ".join(thing) for thing in self.things))) < HELD

    @property
    def is_beside(self) -> bool:
        """And not above."""
        return "the" in self.relation

    @property
    def places(self) -> tuple[int, int]:
        """0 or 1 for each thing: in the left or upper half, or in the other."""
        return (0, 1) if self.relation in ("to the left of", "above") else (1, 0)

    def draw(self) -> np.ndarray:
        """[64, 64, 3] uint8."""
        number = _numbers()
        things = []
        for (colour, shape), place in zip(self.things, self.places, strict=True):
            ahead, across = (0.01, 0.51)[place], 0.26
            top, left = (across, ahead) if self.is_beside else (ahead, across)
            things.append(Thing(number[f"{colour} {shape}", self.style], top, left, 0.48))
        return draw_scene(Scene("pair", tuple(things), WHITE, (self.caption,), ()), SIZE)


@cache
def _numbers() -> dict[tuple[str, str], int]:
    return {(icon.entry.label, icon.style): row for row, (icon, _, _) in enumerate(list_icons())}


@cache
def known_things() -> list[tuple[str, str]]:
    """The colours and shapes of which there is an emoji in every style."""
    every = itertools.product(COLOURS, SHAPES)
    return [
        (colour, shape)
        for colour, shape in every
        if all((f"{colour} {shape}", style) in _numbers() for style in STYLES)
    ]


def all_pairs() -> list[Pair]:
    """Every pair of things that differ in colour and in shape, so that a swap shows."""
    things = known_things()
    return [
        Pair((first, second), relation, style)
        for first, second in itertools.permutations(things, 2)
        if first[0] != second[0] and first[1] != second[1]
        for relation in RELATIONS
        for style in STYLES
    ]


def make_data(folder: Path) -> list[Pair]:
    """The training pictures as a folder with captions.jsonl; returns the held-out pairs."""
    rng = np.random.default_rng(0)
    pairs = all_pairs()
    known = [pair for pair in pairs if not pair.is_held_out]
    held = [pair for pair in pairs if pair.is_held_out]
    test = [held[row] for row in rng.permutation(len(held))[:TEST]]
    if (folder / "captions.jsonl").is_file():
        return test
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rng.permutation(len(known))[:TRAIN]):
        pair = known[row]
        save_png(folder / f"{number:05d}.png", pair.draw())
        backwards = Pair(pair.things[::-1], RELATIONS[pair.relation], pair.style)  # type: ignore
        captions = [pair.caption, backwards.caption]
        lines.append(json.dumps({"file": f"{number:05d}.png", "captions": captions}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return test


def train(work: Path, data: Path) -> None:
    """The three stages, by the recipes of configs/emoji on other pictures."""
    for stage, steps in STEPS.items():
        command = [sys.executable, "train.py", f"configs/emoji/{stage}.py", "--steps", str(steps)]
        command += ["--workdir", str(work / stage), "--data.source", str(data)]
        command += ["--data.shuffle_block", "1", "--checkpoint.every", "250"]
        command += ["--log.preview_every", "0"]
        command += ["--clip", str(work / "clip")] if stage != "clip" else ["--least_crop", "1"]
        subprocess.run(command, cwd=ROOT, check=True)


def halves(picture: np.ndarray, is_beside: bool) -> list[np.ndarray]:
    """The left and right half, or the upper and lower one, without the empty borders across."""
    side, border = SIZE // 2, SIZE // 4
    if is_beside:
        strip = picture[border : SIZE - border]
        return [strip[:, :side], strip[:, side:]]
    strip = picture[:, border : SIZE - border]
    return [strip[:side], strip[side:]]


def inked(half: np.ndarray) -> np.ndarray:
    """[H, W] bool."""
    return np.abs(255 - half.astype(int)).max(axis=-1) > INK


class Reader:
    """Reads colours and shapes off pictures, by the true drawings of single things."""

    def __init__(self) -> None:
        numbers = _numbers()
        self.colour: dict[tuple[str, str], np.ndarray] = {}
        self.shape: dict[tuple[str, str], np.ndarray] = {}
        for style in STYLES:
            for colour, shape in known_things():
                thing = Thing(numbers[f"{colour} {shape}", style], 0, 0, 1)
                alone = draw_scene(Scene("one", (thing,), WHITE, (), ()), SIZE // 2)
                ink = inked(alone)
                self.colour.setdefault((colour, style), alone[ink].mean(axis=0))
                self.shape.setdefault((shape, style), ink)

    def read(self, half: np.ndarray, style: str) -> tuple[str, str]:
        """The nearest colour to the mean of the ink, and the shape that overlaps it most."""
        ink = inked(half)
        if ink.mean() < 0.05:
            return "", ""
        mean = half[ink].mean(axis=0)
        apart = {c: np.linalg.norm(mean - self.colour[c, style]) for c in COLOURS}
        overlap = {
            shape: (ink & self.shape[shape, style]).sum() / (ink | self.shape[shape, style]).sum()
            for shape in SHAPES
        }
        return min(apart, key=apart.__getitem__), max(overlap, key=overlap.__getitem__)


def score(pairs: Sequence[Pair], pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each picture is right: [N] bool of each kind."""
    reader, found = Reader(), []
    for pair, picture in zip(pairs, pictures, strict=True):
        seen = [reader.read(half, pair.style) for half in halves(picture, pair.is_beside)]
        asked = [pair.things[place] for place in np.argsort(pair.places)]
        colours, shapes = ([one[k] for one in seen] for k in (0, 1))
        want_colours, want_shapes = ([one[k] for one in asked] for k in (0, 1))
        found.append(
            {
                "colours": colours == want_colours,
                "shapes": shapes == want_shapes,
                "all_right": colours == want_colours and shapes == want_shapes,
                "things_swapped": seen == asked[::-1],
                "colours_swapped": colours == want_colours[::-1] and shapes == want_shapes,
                "same_colours": sorted(colours) == sorted(want_colours),
            }
        )
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def measure(work: Path, test: Sequence[Pair], steps: int, guidance: float) -> None:
    """Draws the held-out captions in each way, reads them and writes the result."""
    from benchmarks.findings import page
    from benchmarks.findings.bench import interval
    from unclip_jax.evaluation.intervals import share_interval
    from unclip_jax.generation.keys import image_keys
    from unclip_jax.pipeline import UnCLIP

    unclip = UnCLIP.load({stage: str(work / stage) for stage in STEPS})
    own = unclip.sampling
    decoder = replace(own.decoder, num_steps=steps, guidance_scale=guidance)
    how = replace(own, decoder=decoder, batch_size=16)
    captions, true = [pair.caption for pair in test], np.stack([pair.draw() for pair in test])
    keys = image_keys(0, range(len(test)))
    embeddings = unclip.encode_image(true)
    plain = replace(how, decoder=replace(decoder, guidance_scale=1.0))
    ways = {
        "true pictures": true,
        "GLIDE: caption alone": unclip.decode(None, captions, keys, how),
        "unCLIP: prior and caption": unclip.decode(
            unclip.sample_prior(captions, keys, how), captions, keys, how
        ),
        "unCLIP: prior alone": unclip.decode(
            unclip.sample_prior(captions, keys, how), [""] * len(test), keys, plain
        ),
        "true embedding alone": unclip.decode(embeddings, [""] * len(test), keys, plain),
    }
    rows = []
    for name, pictures in ways.items():
        hits = score(test, pictures)
        rows.append(
            {"name": name, **{key: interval(share_interval(one)) for key, one in hits.items()}}
        )
        print(rows[-1], file=sys.stderr)
    cells = np.stack([pictures[:12] for pictures in ways.values()], axis=1)
    save_png(work / "binding.png", make_grid(cells.reshape(-1, SIZE, SIZE, 3), len(ways)))
    result = {
        "split": "held-out pairs",
        "prompts": len(test),
        "steps": steps,
        "guidance": guidance,
        "stages": STEPS,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "binding.json").write_text(text, encoding="utf-8")
    page.write(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/binding"))
    parser.add_argument("--steps", type=int, default=20, help="of the decoder")
    parser.add_argument("--guidance", type=float, default=2.0)
    options = parser.parse_args()
    test = make_data(options.work / "pictures")
    train(options.work, options.work / "pictures")
    measure(options.work, test, options.steps, options.guidance)


if __name__ == "__main__":
    main()
