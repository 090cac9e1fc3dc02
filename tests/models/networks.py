"""Tiny networks with random weights everywhere, for statements that must hold for any weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.text import TextConfig, text_mask
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig

TEXT = TransformerConfig(width=8, depth=2, heads=2)
UNET = UNetConfig(
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    depth=(1,),
    attention_resolutions=(4,),
    head_channels=8,
    context_width=8,
    groups=4,
)
SMALL_UNET = replace(UNET, image_size=4, channel_mult=(1,))
DECODER = DecoderConfig(
    unet=UNET,
    text=TextConfig(20, 6, TEXT),
    embedding_width=12,
    null_embedding="learned",
    masks_padding=True,
)
PRIOR = PriorConfig(12, 10, 6, TransformerConfig(width=16, depth=2, heads=2))
VISION = TransformerConfig(width=16, depth=2, heads=2)
CLIP_CONFIG = CLIPConfig(12, 8, 4, VISION, TEXT, vocab_size=20, context_length=6)

# Start of text 18, end of text 19; captions of 3, 6 and 2 tokens.
TOKENS = np.array([[18, 5, 19, 0, 0, 0], [18, 3, 4, 7, 9, 19], [18, 19, 0, 0, 0, 0]], np.int32)
MASK = np.array(text_mask(jnp.asarray(TOKENS)))
T = np.array([3, 500, 999], np.int32)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_params(module: nn.Module, *inputs: Any) -> Any:
    """0.3 times normal numbers everywhere, around 1 in the gains of norms."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    seeds = iter(range(10_000))

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        is_gain = path[-1].key == "scale"
        return (0.3 * draw(next(seeds), *leaf.shape) + is_gain).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


class Network:
    """A module with random weights and inputs by name; calling it changes some of the inputs."""

    def __init__(self, module: nn.Module, inputs: dict[str, np.ndarray]) -> None:
        self.module, self.inputs = module, inputs
        self.params = random_params(module, *inputs.values())
        self.jitted = jax.jit(module.apply)

    def __call__(self, apply: Callable | None = None, **changes: Any) -> np.ndarray:
        inputs = (self.inputs | changes).values()
        return np.asarray((apply or self.jitted)({"params": self.params}, *inputs))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-5))


def changed_rows(a: np.ndarray, b: np.ndarray) -> list[bool]:
    return [not same(x, y) for x, y in zip(a, b, strict=True)]
