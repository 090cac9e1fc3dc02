"""U-Nets, text transformer and prior against GLIDE, ADM and Karlo, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.reference_weights import (
    Golden,
    Tree,
    glide_text,
    prior_from_diffusers,
    unet_from_adm,
    unet_from_diffusers,
)
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.models.text import TextConfig, TextTransformer
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNet, UNetConfig

FOLDER = Path(__file__).parents[1] / "golden"
GLIDE = UNetConfig(
    image_size=16,
    channels=8,
    channel_mult=(1, 2, 3),
    depth=(2,),
    attention_resolutions=(8, 4),
    head_channels=8,
    context_width=16,
    groups=4,
)
ADM = replace(GLIDE, depth=(1,), context_width=None)
KARLO = replace(
    GLIDE,
    channel_mult=(1, 2, 3, 4),
    depth=(3,),
    attention_resolutions=(8, 4, 2),
    context_width=20,
)
KARLO_SR = replace(
    KARLO,
    image_size=64,
    in_channels=6,
    out_channels=3,
    attention_resolutions=(),
    has_middle_attention=False,
    context_width=None,
    time_norm="additive",
)


@pytest.fixture(scope="module", autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def karlo() -> tuple[Golden, Tree, Callable]:
    golden = Golden(FOLDER / "parity_karlo_decoder.npz")
    params = unet_from_diffusers(golden.weights, KARLO)
    assert golden.weights.unread() == []
    return golden, params, jax.jit(UNet(KARLO).apply)


def test_glide() -> None:
    golden = Golden(FOLDER / "parity_glide.npz")
    projection = golden.weights.dense("transformer_proj")
    text, unet = glide_text(golden.weights, heads=2), unet_from_adm(golden.weights, GLIDE)
    assert golden.weights.unread() == []

    config = TextConfig(97, 12, TransformerConfig(width=16, depth=2, heads=2))
    encode = TextTransformer(config).apply
    inputs = golden.inputs
    states, pooled = encode({"params": text}, inputs["tokens"], inputs["mask"])  # type: ignore[misc]
    golden.check(states, "states", channels_last=True)
    time_condition = pooled @ projection["kernel"] + projection["bias"]
    golden.check(time_condition, "time_condition")

    apply = jax.jit(UNet(GLIDE).apply)
    out = apply({"params": unet}, golden.picture("x"), inputs["t"], time_condition, states)
    golden.check(out, "unet", channels_last=True)


def test_adm_with_its_class_embedding_as_time_condition() -> None:
    golden = Golden(FOLDER / "parity_adm.npz")
    label = golden.weights.take("label_emb.weight")[golden.inputs["label"]]
    params = unet_from_adm(golden.weights, ADM)
    assert golden.weights.unread() == []
    apply = jax.jit(UNet(ADM).apply)
    out = apply({"params": params}, golden.picture("x"), golden.inputs["t"], label)
    golden.check(out, "unet", channels_last=True)


@pytest.mark.parametrize("t", [0, 500, 999])
def test_karlo_decoder(t: int, karlo: tuple[Golden, Tree, Callable]) -> None:
    golden, params, apply = karlo
    x, i = golden.picture("x"), golden.inputs
    times = jnp.full(len(x), t)
    out = apply({"params": params}, x, times, i["time_condition"], i["context"], i["mask"])
    golden.check(out, f"t{t}", channels_last=True)


def test_karlo_super_resolution() -> None:
    golden = Golden(FOLDER / "parity_karlo_sr.npz")
    params = unet_from_diffusers(golden.weights, KARLO_SR)
    assert golden.weights.unread() == []
    apply = jax.jit(UNet(KARLO_SR).apply)
    for t in (0, 500, 999):
        out = apply({"params": params}, golden.picture("x"), jnp.full(1, t))
        golden.check(out, f"t{t}", channels_last=True)


def test_karlo_prior() -> None:
    golden = Golden(FOLDER / "parity_karlo_prior.npz")
    params = prior_from_diffusers(golden.weights)
    assert golden.weights.unread() == ["clip_mean", "clip_std"]
    config = PriorConfig(24, 24, 77, TransformerConfig(48, 3, 4), embedding_scale=1.0)
    apply, i = jax.jit(DiffusionPrior(config).apply), golden.inputs
    for t in (0, 1, 500, 999):
        times = jnp.full(2, t)
        out = apply({"params": params}, i["x"], times, i["text_embed"], i["text_hidden"], i["mask"])
        golden.check(out, f"t{t}")


@pytest.mark.parametrize("change", ["heads", "groups", "mask", "time"])
def test_a_mistake_is_seen(change: str, karlo: tuple[Golden, Tree, Callable]) -> None:
    golden, params, apply = karlo
    x, i = golden.picture("x"), golden.inputs
    mask, times = i["mask"], jnp.full(len(x), 500)
    assert not np.all(mask)
    if change == "heads":
        apply = jax.jit(UNet(replace(KARLO, head_channels=4)).apply)
    elif change == "groups":
        apply = jax.jit(UNet(replace(KARLO, groups=8)).apply)
    elif change == "mask":
        mask = np.ones_like(mask)
    else:
        times = times - 1
    out = apply({"params": params}, x, times, i["time_condition"], i["context"], mask)
    with pytest.raises(AssertionError):
        golden.check(out, "t500", channels_last=True)
