"""The two namings of ADM's U-Net, as key maps onto `models.unet.UNet`.

OpenAI's (ADM, GLIDE, Karlo's own files) numbers the blocks through: `input_blocks.3.1.qkv`.
diffusers' counts them level by level: `down_blocks.1.attentions.0.to_q`. The networks are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from unclip_jax.interop.key_map import KeyMap, conv, dense, joined, norm, packed
from unclip_jax.interop.layouts import POINTWISE, Layout
from unclip_jax.models.unet import UNetConfig

AttentionOrder = Literal["legacy", "new"]
"""How rows of a packed projection are sorted: [q_h | k_h | v_h] head by head, or [Q | K | V]. No
shape tells which; every published file but ADM's 64 x 64 diffusion model is 'legacy'."""


@dataclass(frozen=True)
class Place:
    """One block of a U-Net, by its three names."""

    target: str
    openai: str
    diffusers: str
    is_attention: bool
    inputs: int
    """Channels that come in; of a block on the way up, with those of the skip."""
    width: int
    """Channels that go out."""


def adm_unet_keys(
    config: UNetConfig,
    attention_order: AttentionOrder = "legacy",
    pointwise: Layout = POINTWISE,
) -> KeyMap:
    """OpenAI's naming → params of `UNet`, all of them.

    Args:
        pointwise: how a projection of the attention is stored; a Conv1d of width 1, or DENSE for a
            plain matrix.
    """
    return [
        *_openai_ends(),
        *_openai_places(config, unet_places(config), attention_order, pointwise),
        *norm("norm_out", "out.0"),
        *conv("conv_out", "out.2"),
    ]


def adm_encoder_keys(
    config: UNetConfig,
    attention_order: AttentionOrder = "legacy",
    pointwise: Layout = POINTWISE,
) -> KeyMap:
    """OpenAI's naming of the first half and the middle, without what comes after them."""
    places = [*_down_places(config), *_middle_places(config)]
    return [*_openai_ends(), *_openai_places(config, places, attention_order, pointwise)]


def diffusers_unet_keys(config: UNetConfig) -> KeyMap:
    """diffusers' UNet2DConditionModel with added keys and values, or UNet2DModel → `UNet`."""
    entries = [
        *dense("time_in", "time_embedding.linear_1"),
        *dense("time_out", "time_embedding.linear_2"),
        *conv("conv_in", "conv_in"),
        *norm("norm_out", "conv_norm_out"),
        *conv("conv_out", "conv_out"),
    ]
    for place in unet_places(config):
        here, there = place.target, place.diffusers
        if not place.is_attention:
            names = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
            entries += _res_block(place, there, names)
            continue
        entries += norm(f"{here}/norm", f"{there}.group_norm")
        entries += joined(f"{here}/qkv", [f"{there}.to_{part}" for part in "qkv"])
        if config.context_width is not None:
            added = [f"{there}.add_{part}_proj" for part in "kv"]
            entries += joined(f"{here}/context_kv", added)
        entries += dense(f"{here}/projection", f"{there}.to_out.0")
    return entries


def unet_places(config: UNetConfig) -> Iterator[Place]:
    """Every block, in the order in which the data flows."""
    yield from _down_places(config)
    yield from _middle_places(config)
    yield from _up_places(config)


def _down_places(c: UNetConfig) -> Iterator[Place]:
    number, inputs = 1, c.channels * c.channel_mult[0]
    for level, mult in enumerate(c.channel_mult):
        width, other = c.channels * mult, f"down_blocks.{level}"
        for i in range(c.level_depth(level)):
            here, openai = f"down{level}", f"input_blocks.{number}"
            yield Place(
                f"{here}_block{i}", f"{openai}.0", f"{other}.resnets.{i}", False, inputs, width
            )
            if c.attends(level):
                yield _attention(
                    f"{here}_attention{i}", f"{openai}.1", f"{other}.attentions.{i}", width
                )
            number, inputs = number + 1, width
        if level < len(c.channel_mult) - 1:
            openai, other = f"input_blocks.{number}.0", f"{other}.downsamplers.0"
            yield Place(f"down{level}_downsample", openai, other, False, width, width)
            number += 1


def _middle_places(c: UNetConfig) -> Iterator[Place]:
    width, number = c.channels * c.channel_mult[-1], 1
    yield Place("middle_block0", "middle_block.0", "mid_block.resnets.0", False, width, width)
    if c.has_middle_attention:
        yield _attention("middle_attention", "middle_block.1", "mid_block.attentions.0", width)
        number = 2
    last = f"middle_block.{number}"
    yield Place("middle_block1", last, "mid_block.resnets.1", False, width, width)


def _up_places(c: UNetConfig) -> Iterator[Place]:
    levels, number = len(c.channel_mult), 0
    skips, inputs = _skip_widths(c), c.channels * c.channel_mult[-1]
    for level in reversed(range(levels)):
        width, other = c.channels * c.channel_mult[level], f"up_blocks.{levels - 1 - level}"
        last, attends = c.level_depth(level), c.attends(level)
        for i in range(last + 1):
            here, openai, resnet = f"up{level}", f"output_blocks.{number}", f"{other}.resnets.{i}"
            inputs += skips.pop()
            yield Place(f"{here}_block{i}", f"{openai}.0", resnet, False, inputs, width)
            if attends:
                attention = f"{other}.attentions.{i}"
                yield _attention(f"{here}_attention{i}", f"{openai}.1", attention, width)
            if level and i == last:  # inside the level's last numbered block, after its attention
                openai, upsampler = f"{openai}.{1 + attends}", f"{other}.upsamplers.0"
                yield Place(f"{here}_upsample", openai, upsampler, False, width, width)
            number, inputs = number + 1, width


def _skip_widths(c: UNetConfig) -> list[int]:
    """Channels of the states that the way down leaves behind, the first one first."""
    widths = [c.channels * c.channel_mult[0]]
    for level, mult in enumerate(c.channel_mult):
        halved = level < len(c.channel_mult) - 1
        widths += [c.channels * mult] * (c.level_depth(level) + halved)
    return widths


def _attention(target: str, openai: str, diffusers: str, width: int) -> Place:
    return Place(target, openai, diffusers, True, width, width)


def _openai_ends() -> KeyMap:
    return [
        *dense("time_in", "time_embed.0"),
        *dense("time_out", "time_embed.2"),
        *conv("conv_in", "input_blocks.0.0"),
    ]


def _openai_places(
    config: UNetConfig,
    places: Iterator[Place] | list[Place],
    order: AttentionOrder,
    pointwise: Layout,
) -> KeyMap:
    entries = []
    for place in places:
        here, there = place.target, place.openai
        if not place.is_attention:
            names = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
            entries += _res_block(place, there, (*names, "skip_connection"))
            continue
        heads = config.num_heads(place.width)
        entries += norm(f"{here}/norm", f"{there}.norm")
        entries += _packed(f"{here}/qkv", f"{there}.qkv", heads, 3, order, pointwise)
        if config.context_width is not None:
            source = f"{there}.encoder_kv"
            entries += _packed(f"{here}/context_kv", source, heads, 2, order, pointwise)
        entries += dense(f"{here}/projection", f"{there}.proj_out", kernel=pointwise)
    return entries


def _packed(
    target: str, source: str, heads: int, parts: int, order: AttentionOrder, pointwise: Layout
) -> KeyMap:
    if order == "new":
        return dense(target, source, kernel=pointwise)
    return packed(target, source, heads, parts, pointwise)


def _res_block(place: Place, there: str, names: tuple[str, ...]) -> KeyMap:
    norm_in, conv_in, time, norm_out, conv_out, skip = (f"{there}.{name}" for name in names)
    here = place.target
    return [
        *norm(f"{here}/norm_in", norm_in),
        *conv(f"{here}/conv_in", conv_in),
        *dense(f"{here}/time_projection", time),
        *norm(f"{here}/norm_out", norm_out),
        *conv(f"{here}/conv_out", conv_out),
        *(conv(f"{here}/skip", skip) if place.inputs != place.width else []),
    ]
