"""The four channels of a known part: what they hold, and that at zero they change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.networks import DECODER, MASK, SMALL_UNET, TOKENS, T, draw, random_params
from unclip_jax.errors import UserError
from unclip_jax.interop.glide import GLIDE_INPAINT
from unclip_jax.interop.glide_networks import Glide, GlideConfig
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.known import known_channels
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import Upsampler, UpsamplerConfig
from unclip_jax.training.initial_weights import check_fits, padded
from unclip_jax.training.weights import flatten

UPSAMPLER = UpsamplerConfig(
    UNetConfig(
        image_size=16,
        in_channels=6,
        channels=8,
        channel_mult=(1,),
        depth=(1,),
        attention_resolutions=(),
        has_middle_attention=False,
        groups=4,
    )
)
KEEP = draw(8, 3, 8, 8, 1) > 0
IMAGES = np.tanh(draw(9, 3, 8, 8, 3))
KNOWN = np.asarray(known_channels(jnp.asarray(IMAGES), jnp.asarray(KEEP)))
CAPTION = (TOKENS, MASK)


def inpainting(config: Any) -> Any:
    unet = replace(config.unet, in_channels=config.unet.in_channels + 4)
    return replace(config, unet=unet, is_inpainting=True)


def networks(kind: str) -> tuple[nn.Module, nn.Module, tuple[Any, ...]]:
    """A plain network, the same for inpainting, and their inputs."""
    x = draw(1, 3, 8, 8, 3)
    if kind == "upsampler":
        inputs = (x, T, np.tanh(draw(2, 3, 2, 2, 3)), None)
        return Upsampler(UPSAMPLER), Upsampler(inpainting(UPSAMPLER)), inputs
    unet = replace(SMALL_UNET, image_size=8, patch_size=2 if kind == "patches" else 1)
    config = replace(DECODER, unet=unet)
    inputs = (x, T, draw(2, 3, 12), np.ones(3, bool), *CAPTION, None, None)
    return Decoder(config), Decoder(inpainting(config)), inputs


@pytest.mark.parametrize("kind", ["decoder", "patches", "upsampler"])
def test_a_fine_tune_begins_as_the_network_it_starts_from(kind: str) -> None:
    """Padded with zeros the weights compute what they did, whatever is known."""
    plain, grown, inputs = networks(kind)
    params = random_params(plain, *inputs)
    shapes = jax.eval_shape(grown.init, jax.random.key(0), *inputs)["params"]
    check_fits(flatten(shapes), flatten(params), "plain")
    begun = jax.tree.map(lambda leaf, own: padded(leaf, own.shape), params, shapes)
    before = jax.jit(plain.apply)({"params": params}, *inputs)
    apply = jax.jit(grown.apply)
    for known in (None, KNOWN):
        after = apply({"params": begun}, *inputs, known)
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)

    kernel = begun["unet"]["conv_in"]["kernel"]
    added = kernel.shape[2] - params["unet"]["conv_in"]["kernel"].shape[2]
    kernel[:, :, -added:] = draw(5, *kernel[:, :, -added:].shape)
    nothing, some = (
        np.asarray(apply({"params": begun}, *inputs, known)) for known in (None, KNOWN)
    )
    np.testing.assert_allclose(nothing, before, rtol=1e-5, atol=1e-5)  # None is "nothing is known"
    assert np.abs(some - nothing).max() > 1e-2

    fresh = jax.jit(grown.init)(jax.random.key(0), *inputs)["params"]["unet"]["conv_in"]["kernel"]
    assert not np.any(fresh[:, :, -added:]) and np.all(np.any(fresh[:, :, :-added], axis=(0, 1, 3)))


def test_the_hole_is_not_seen() -> None:
    other = jnp.where(KEEP, IMAGES, jnp.nan)
    np.testing.assert_array_equal(known_channels(other, jnp.asarray(KEEP)), KNOWN)
    np.testing.assert_array_equal(KNOWN[..., 3:], KEEP)


def test_glides_inpainting_network_is_a_decoder() -> None:
    """The released one by its count, and a small one by what it computes."""
    shapes = jax.eval_shape(
        Decoder(GLIDE_INPAINT.decoder()).init,
        jax.random.key(0),
        *(np.zeros((1, 64, 64, 3), "f4"), np.zeros(1, int), None, None),
        *(np.zeros((1, 128), int), np.ones((1, 128), bool)),
    )["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 385_037_638

    assert DECODER.text is not None
    unet = replace(SMALL_UNET, image_size=8, in_channels=7)
    glide = GlideConfig(unet, DECODER.text, is_inpainting=True)
    x, mask = draw(1, 3, 8, 8, 3), KEEP.astype("f4")
    params = random_params(Glide(glide), x, T, *CAPTION)
    glides, own = jax.jit(Glide(glide).apply), jax.jit(Decoder(glide.decoder()).apply)
    expected = glides({"params": params}, x, T, *CAPTION, None, IMAGES, mask)
    found = own({"params": params}, x, T, None, None, *CAPTION, None, None, KNOWN)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # pyright: ignore


def test_what_does_not_fit_is_one_line() -> None:
    plain, _, inputs = networks("upsampler")
    with pytest.raises(UserError, match=r"not trained to see a known part .*load the one that was"):
        jax.eval_shape(plain.init, jax.random.key(0), *inputs, KNOWN)
    with pytest.raises(UserError, match=r"in_channels is 7: a decoder with is_inpainting False"):
        replace(DECODER, unet=replace(SMALL_UNET, in_channels=7))
    with pytest.raises(UserError, match=r"in_channels is 6: an upsampler with is_inpainting True"):
        replace(UPSAMPLER, is_inpainting=True)
