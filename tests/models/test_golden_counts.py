"""Parameter counts of the published models, by shape evaluation: no array is made.

The numbers are those of the original code, counted module by module. A sum of a paper-size model
that differs by one parameter means another network.
"""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.models.decoder import Decoder, DecoderConfig
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.models.text import TextConfig, TextTransformer
from unclip_jax.models.transformer import Transformer, TransformerConfig
from unclip_jax.models.unet import UNet, UNetConfig

GLIDE_TEXT = TextConfig(50257, 128, TransformerConfig(width=512, depth=16, heads=8))
PAPER_TEXT = TextConfig(50257, 256, TransformerConfig(width=2048, depth=24, heads=32))
PAPER_UNET = UNetConfig(channels=512, context_width=2048)
# Upsamplers of the paper: "no attention layers", 3 channels for the low-resolution picture.
UPSAMPLER_256 = UNetConfig(
    image_size=256,
    in_channels=6,
    channels=320,
    attention_resolutions=(),
    has_middle_attention=False,
)
UPSAMPLER_1024 = replace(
    UPSAMPLER_256, image_size=1024, channels=192, channel_mult=(1, 1, 2, 2, 4, 4), depth=(2,)
)


def count(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> int:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def array(*shape: int, dtype: object = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[arg-type]


TIME = array(1, dtype=jnp.int32)


def unet_count(c: UNetConfig) -> int:
    inputs = [array(1, c.image_size, c.image_size, c.in_channels), TIME]
    if c.context_width is not None:
        inputs += [array(1, c.time_width), array(1, 3, c.context_width)]
    return count(UNet(c), *inputs)


def text_count(c: TextConfig) -> int:
    tokens = array(1, c.context_length, dtype=jnp.int32)
    return count(TextTransformer(c), tokens, array(1, c.context_length, dtype=bool))


def dense_count(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_adm_64_without_its_class_embedding() -> None:
    assert unet_count(UNetConfig()) == 295_904_454 - 1000 * 768


def test_glide() -> None:
    unet, text = unet_count(UNetConfig(context_width=512)), text_count(GLIDE_TEXT)
    assert (unet, text) == (308_334_918, 76_301_824)
    assert unet + text + dense_count(512, 4 * 192) == 385_030_726
    glide = DecoderConfig(UNetConfig(context_width=512), GLIDE_TEXT, embedding_width=None)
    tokens, mask = array(1, 128, dtype=jnp.int32), array(1, 128, dtype=bool)
    shapes = jax.eval_shape(
        lambda x, t, tokens, mask: Decoder(glide).init(
            jax.random.key(0), x, t, None, None, tokens, mask
        ),
        *(array(1, 64, 64, 3), TIME, tokens, mask),
    )
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) == 385_030_726


def test_unet_of_the_papers_decoder() -> None:
    unet, text = unet_count(PAPER_UNET), text_count(PAPER_TEXT)
    assert unet == 2_238_164_486  # 2,238.2M
    assert unet + text + dense_count(2048, 4 * 512) == 3_554_938_374  # 3,554.9M


def test_papers_decoder_is_glide_and_three_projections_of_the_embedding() -> None:
    config = DecoderConfig(unet=PAPER_UNET, text=PAPER_TEXT, embedding_width=1024)
    inputs = (array(1, 64, 64, 3), TIME, array(1, 1024), array(1, dtype=bool))
    text = (array(1, 256, dtype=jnp.int32), array(1, 256, dtype=bool))
    embedding = dense_count(1024, 4 * 512) + dense_count(1024, 4 * 2048)
    assert count(Decoder(config), *inputs, *text) == 3_554_938_374 + embedding


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (UPSAMPLER_256, 729_710_726),  # 729.7M
        (replace(UPSAMPLER_256, has_middle_attention=True), 736_272_006),  # 736.3M
        (UPSAMPLER_1024, 282_064_326),  # 282.1M
        (replace(UPSAMPLER_1024, has_middle_attention=True), 284_428_230),  # 284.4M
        (UNetConfig(channels=320, context_width=1536), 885_439_686),  # Karlo's decoder
        (replace(UPSAMPLER_256, out_channels=3, time_norm="additive"), 691_579_523),  # its SR
    ],
)
def test_unets(config: UNetConfig, expected: int) -> None:
    assert unet_count(config) == expected


def test_karlos_prior_without_its_statistics() -> None:
    config = PriorConfig(768, 768, 77, TransformerConfig(width=2048, depth=20, heads=32))
    inputs = (array(1, 768), TIME, array(1, 768), array(1, 77, 768), array(1, 77, dtype=bool))
    assert count(DiffusionPrior(config), *inputs) == 1_022_030_080 - 2 * 768


@pytest.mark.parametrize(
    ("width", "depth", "millions"), [(2048, 24, 1208.6), (2048, 20, 1007.2), (1664, 24, 798.0)]
)
def test_blocks_of_the_priors(width: int, depth: int, millions: float) -> None:
    config = TransformerConfig(width=width, depth=depth, heads=32)
    assert round(count(Transformer(config), array(1, 2, width)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIPConfig(), 151_277_313),  # ViT-B/32
        (
            CLIPConfig(
                768, 224, 14, TransformerConfig(1024, 24, 16), TransformerConfig(768, 12, 12)
            ),
            427_616_513,  # ViT-L/14
        ),
        (
            CLIPConfig(
                1024, 224, 14, TransformerConfig(1280, 32, 16), TransformerConfig(1024, 24, 16)
            ),
            986_109_441,  # OpenCLIP ViT-H/14, heads of 80
        ),
        (
            CLIPConfig(
                1280,
                224,
                14,
                TransformerConfig(1664, 48, 16, mlp_width=8192),
                TransformerConfig(1280, 32, 20),
            ),
            2_539_567_105,  # OpenCLIP ViT-bigG/14
        ),
    ],
)
def test_clip(config: CLIPConfig, expected: int) -> None:
    images = array(1, config.image_size, config.image_size, 3)
    assert count(CLIP(config), images, array(1, 77, dtype=jnp.int32)) == expected
