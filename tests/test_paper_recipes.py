"""configs/dalle2 is what Ramesh et al. 2022 print in table 3 and appendix C."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import pytest

from unclip_jax.cli.overrides import load_recipe
from unclip_jax.training.stages import init_params

FOLDER = Path(__file__).parents[1] / "configs" / "dalle2"

# Columns "diffusion prior" and "64" of table 3, and of CLIP (Radford et al. 2021, tables 18 and 20)
# what appendix C does not replace.
PRINTED: dict[str, dict[str, Any]] = {
    "clip": {
        "model.image_size": 256,
        "model.patch_size": 16,
        "model.embedding_width": 1024,
        "model.vision.width": 1280,
        "model.vision.depth": 32,
        "model.text.width": 1024,
        "model.text.depth": 24,
        "model.vocab_size": 49_408,
        "loss": "softmax",
        "batch_size": 32_768,
        "optim.learning_rate": 3e-4,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 2000,
        "optim.weight_decay": 0.2,
        "optim.b1": 0.9,
        "optim.b2": 0.98,
        "optim.eps": 1e-6,
    },
    "prior": {
        "diffusion.num_timesteps": 1000,
        "diffusion.schedule": "cosine",
        "diffusion.prediction": "x0",
        "model.context_length": 256,
        "model.transformer.width": 2048,
        "model.transformer.depth": 24,
        "model.transformer.heads": 32,
        "model.scale": 17.2,
        "text_drop": 0.1,
        "optim.weight_decay": 6e-2,
        "batch_size": 4096,
        "steps": 600_000,
        "optim.learning_rate": 1.1e-4,
        "optim.b1": 0.9,
        "optim.b2": 0.96,
        "optim.eps": 1e-6,
        "ema_decay": 0.9999,
    },
    "decoder": {
        "diffusion.num_timesteps": 1000,
        "diffusion.schedule": "cosine",
        "diffusion.prediction": "eps",
        "diffusion.variance": "learned_range",
        "model.unet.image_size": 64,
        "model.unet.channels": 512,
        "model.unet.depth": (3,),
        "model.unet.channel_mult": (1, 2, 3, 4),
        "model.unet.head_channels": 64,
        "model.unet.attention_resolutions": (32, 16, 8),
        "model.unet.dropout": 0.1,
        "model.text.context_length": 256,
        "model.text.transformer.width": 2048,
        "model.text.transformer.depth": 24,
        "model.text.transformer.heads": 32,
        "model.num_embedding_tokens": 4,
        "embedding_drop": 0.1,
        "text_drop": 0.5,
        "optim.weight_decay": 0.0,
        "batch_size": 2048,
        "steps": 800_000,
        "optim.learning_rate": 1.2e-4,
        "optim.b1": 0.9,
        "optim.b2": 0.999,
        "optim.eps": 1e-8,
        "ema_decay": 0.9999,
    },
}


def read(recipe: Any, path: str) -> Any:
    for name in path.split("."):
        recipe = getattr(recipe, name)
    return recipe


@pytest.mark.parametrize("stage", sorted(PRINTED))
def test_recipe_is_as_printed(stage: str) -> None:
    recipe = load_recipe(str(FOLDER / f"{stage}.py"))
    assert {path: read(recipe, path) for path in PRINTED[stage]} == PRINTED[stage]


def test_clip_sees_32_epochs_of_its_650_million_pairs() -> None:
    recipe: Any = load_recipe(str(FOLDER / "clip.py"))
    assert recipe.steps == math.ceil(32 * 650_000_000 / recipe.batch_size)
    assert recipe.ema_decay == 0  # CLIP averages no weights


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


# OpenCLIP's ViT-H/14 at 224, but for its patches and its positions of text: both have 16 x 16
# patches of a picture.
CLIP = 986_109_441 + 3 * 1280 * (16**2 - 14**2) + (256 - 77) * 1024
# 24 blocks; two Dense layers of the time embedding; the caption, its embedding, the picture's in
# and out; positions, query, last norm.
PRIOR = (
    24 * (dense(2048, 6144) + dense(2048, 2048) + dense(2048, 8192) + dense(8192, 2048) + 4 * 2048)
    + 2 * dense(2048, 2048)
    + 3 * dense(1024, 2048)
    + dense(2048, 1024)
    + 260 * 2048
    + 2048
    + 2 * 2048
)
# GLIDE's 3.5 billion with CLIP's vocabulary instead of GPT-2's, and the embedding's two ways in.
DECODER = 3_554_938_374 - (50_257 - 49_408) * 2048 + dense(1024, 2048) + dense(1024, 4 * 2048)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("clip", CLIP),
        ("prior", PRIOR),
        ("decoder", DECODER),
        ("decoder_inpaint", DECODER + 3 * 3 * 4 * 512),
    ],
)
def test_number_of_weights(stage: str, expected: int) -> None:
    recipe = load_recipe(str(FOLDER / f"{stage}.py"))
    shapes = jax.eval_shape(lambda key: init_params(recipe, key), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == expected


def test_blocks_of_the_prior_are_the_published_1208_million() -> None:
    recipe = load_recipe(str(FOLDER / "prior.py"))
    shapes = jax.eval_shape(lambda key: init_params(recipe, key), jax.random.key(0))
    blocks = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["transformer"]))
    assert round(blocks / 1e6, 1) == 1208.6
