"""Networks of a few thousand parameters and twelve captioned pictures, for the training tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from unclip_jax.cli.overrides import load_recipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe

CONFIGS = Path(__file__).parents[2] / "configs" / "toy"
ALONE = ("clip", "upsampler", "noised_clip", "classifier")
"""Stages that need no CLIP."""
COLOURS = ("red", "green", "blue")
SHAPES = ("circle", "square", "bar", "cross")


def write_pictures(folder: Path) -> Path:
    """`folder` with 12 pictures of 16 x 16 and a caption beside each."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:16, :16] - 7.5
    masks = (x**2 + y**2 < 36, abs(x) + abs(y) * 0 < 5, abs(y) < 2, (abs(x) < 2) | (abs(y) < 2))
    for i, colour in enumerate(COLOURS):
        for shape, mask in zip(SHAPES, masks, strict=True):
            picture = np.full((16, 16, 3), 255, np.uint8)
            picture[mask] = 40
            picture[mask, i] = 220
            Image.fromarray(picture).save(folder / f"{colour}_{shape}.png")
            (folder / f"{colour}_{shape}.txt").write_text(f"a {colour} {shape}\n")
    return folder


def recipe(stage: str, **changes: Any) -> Any:
    """The toy recipe of a stage; a dict changes fields of a part, as optim={"b2": 0.9}."""
    return changed(load_recipe(str(CONFIGS / f"{stage}.py")), **changes)


def changed(recipe: Any, **changes: Any) -> Any:
    """`recipe` with other fields; a dict changes fields of a part."""
    parts = {
        name: replace(getattr(recipe, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return replace(recipe, **parts)


def on_folder(stage: str, folder: Path, steps: int, **changes: Any) -> Any:
    """The toy recipe of a stage on `folder`/pictures, for the CLIP in `folder`/clip."""
    settings: dict[str, Any] = {
        "data": {"source": str(folder / "pictures"), "threads": 1},
        "log": {"every": 1, "preview_every": 0},
        "checkpoint": {"every": 2, "keep": 3},
    }
    if stage not in ALONE:
        settings["clip"] = str(folder / "clip")
    return recipe(stage, steps=steps, **{**settings, **changes})


# One level instead of two: half the compile time.
SMALL_DECODER = {
    "unet": replace(
        load_recipe(str(CONFIGS / "decoder.py")).model.unet,
        channel_mult=(1,),
        attention_resolutions=(16,),
    )
}


def clip_recipe() -> CLIPRecipe:
    return recipe("clip")


def prior_recipe() -> PriorRecipe:
    return recipe("prior")


def decoder_recipe() -> DecoderRecipe:
    return recipe("decoder")


def random_like(shapes: Any, scale: float = 0.3) -> Any:
    """A tree of normal numbers: at its initialisation a U-Net returns zero whatever it is given."""
    leaves, structure = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.unflatten(structure, [scale * draw(x.shape).astype("f4") for x in leaves])


def batch(rows: int, vocab_size: int = 600, length: int = 12) -> dict[str, np.ndarray]:
    """Random pictures and captions of 3 to 10 words."""
    rng = np.random.default_rng(rows)
    tokens = np.zeros((rows, length), np.int32)
    for row in tokens:
        words = rng.integers(3, 10)
        row[1 : 1 + words] = rng.integers(1, vocab_size - 2, words)
        row[0], row[1 + words] = vocab_size - 2, vocab_size - 1
    return {"image": rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8), "tokens": tokens}


def empty_caption(vocab_size: int = 600, length: int = 12) -> np.ndarray:
    tokens = np.zeros(length, np.int32)
    tokens[:2] = vocab_size - 2, vocab_size - 1
    return tokens
