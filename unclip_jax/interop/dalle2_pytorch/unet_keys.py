"""Where each parameter of a U-Net stands in a file.

Every release since 0.14.0 has the same tensors; `UnetEra` names what older ones call otherwise.
"""

from __future__ import annotations

from unclip_jax.interop.dalle2_pytorch.unet_config import StageAttention, UnetConfig
from unclip_jax.interop.key_map import Entry, KeyMap, conv, dense, norm, same, under
from unclip_jax.interop.layouts import SAME, Squeezed

_CHANNEL_GAIN = Squeezed((0, 2, 3), SAME)
"""A gain [1, C, 1, 1]."""
_LEADING_ONE = Squeezed((0,), SAME)

IGNORED = (r".*\.beta",)
"""The constant zero that stood beside a LayerNorm's gain before 0.16.0."""


def unet_key_map(config: UnetConfig) -> KeyMap:
    """Of one U-Net, without the prefix `unets.<i>.`."""
    entries = [*_conditions(config), *_stem(config)]
    for i, stage in enumerate(config.stages):
        ours, theirs = f"down_{i}", f"downs.{i}"
        if config.memory_efficient:
            entries += _downsampled(config, f"{ours}_before", f"{theirs}.0")
        entries += _block(config, f"{ours}_init", f"{theirs}.1")
        for j in range(stage.blocks):
            entries += _block(config, f"{ours}_block_{j}", f"{theirs}.2.{j}", cross=stage.cross)
        entries += _attention(config, f"{ours}_attention", f"{theirs}.3", stage.attention)
        if stage.last or config.memory_efficient:
            entries += conv(f"{ours}_after", f"{theirs}.4")
        else:
            entries += _downsampled(config, f"{ours}_after", f"{theirs}.4")
    entries += _block(config, "mid_block_1", "mid_block1", cross=True)
    entries += _attention(config, "mid_attention", "mid_attn", "full")
    entries += _block(config, "mid_block_2", "mid_block2", cross=True)
    for i, stage in enumerate(reversed(config.stages)):
        ours, theirs, cross = f"up_{i}", f"ups.{i}", stage.cross
        entries += _block(config, f"{ours}_init", f"{theirs}.0", cross=cross, skip=True)
        for j in range(stage.blocks):
            block = f"{ours}_block_{j}"
            entries += _block(config, block, f"{theirs}.1.{j}", cross=cross, skip=True)
        entries += _attention(config, f"{ours}_attention", f"{theirs}.2", stage.attention)
        if cross or config.memory_efficient:
            inside = {"pixel_shuffle": ".net.0", "nearest": ".1", "transposed": ""}
            entries += conv(f"{ours}_after/conv", f"{theirs}.3{inside[config.upsample]}")
        if config.combine_upsample_fmaps:
            entries += _half_block(f"combine_{i}", f"upsample_combiner.fmap_convs.{i}")
    entries += _block(config, "final_block", "final_resnet_block", skip=True)
    return [*entries, *conv("out", "to_out")]


def unused_parameters(config: UnetConfig) -> tuple[str, ...]:
    """First path parts of parameters that a file holds and no output depends on."""
    attended = len(config.stages) > 1
    unused = {
        "norm_tokens": not attended,
        "null_image_tokens": not config.cond_on_image_embeds,
        "null_image_hidden": not config.adds_image_to_time,
        "null_text_tokens": not config.cond_on_text_encodings,
    }
    return tuple(name for name, is_unused in unused.items() if is_unused)


def _conditions(config: UnetConfig) -> KeyMap:
    entries = [
        *same("null_image_tokens", "null_image_embed", _LEADING_ONE),
        *same("null_image_hidden", "null_image_hiddens", _LEADING_ONE),
        *same("null_text_tokens", "null_text_embed", _LEADING_ONE),
        *dense("time_hidden", "to_time_hiddens.1"),
        *dense("time_tokens", "to_time_tokens.0"),
        *dense("time", "to_time_cond.0"),
        *norm("norm_tokens", "norm_cond"),
        *norm("norm_all_tokens", "norm_mid_cond"),
    ]
    if config.projects_image_tokens:
        entries += dense("image_tokens", "image_to_tokens.0")
    if config.adds_image_to_time:
        entries += dense("image_hidden", "to_image_hiddens.0")
    if config.cond_on_text_encodings:
        entries += dense("text_tokens", "text_to_cond")
    if config.lowres_noise_cond:
        entries += dense("noise_level_hidden", "to_lowres_noise_cond.1")
        entries += dense("noise_level", "to_lowres_noise_cond.3")
    return entries


def _stem(config: UnetConfig) -> KeyMap:
    entries = _block(config, "init_block", "init_resnet_block") if config.memory_efficient else []
    if not config.init_cross_embed:
        return [*entries, *conv("init_conv", "init_conv")]
    return [*entries, *_embed("init_embed", "init_conv", config.init_cross_embed_kernel_sizes)]


def _embed(ours: str, theirs: str, sizes: tuple[int, ...]) -> KeyMap:
    return [
        entry
        for i in range(len(sizes))
        for entry in conv(f"{ours}/conv_{i}", f"{theirs}.convs.{i}")
    ]


def _downsampled(config: UnetConfig, ours: str, theirs: str) -> KeyMap:
    if config.downsample == "cross_embed":
        sizes = config.cross_embed_downsample_kernel_sizes
        return _embed(f"{ours}/embed", theirs, sizes)
    return conv(f"{ours}/conv", theirs + (".1" if config.downsample == "unshuffle" else ""))


def _block(
    config: UnetConfig, ours: str, theirs: str, *, cross: bool = False, skip: bool = False
) -> KeyMap:
    """A resnet block; `skip`: its width changes, as it does wherever two maps were joined."""
    entries = [
        *dense("time", "time_mlp.1"),
        *_half_block("block_1", "block1"),
        *_half_block("block_2", "block2"),
    ]
    if skip:
        entries += conv("skip", "res_conv")
    if cross:
        wrapped = ".fn" if config.era.wrapped_cross_attention else ""
        entries += _qkv(config, "cross_attention", f"cross_attn{wrapped}")
    return under(entries, target=f"{ours}/", source=f"{theirs}.")


def _half_block(ours: str, theirs: str) -> KeyMap:
    return [*conv(f"{ours}/project", f"{theirs}.project"), *norm(f"{ours}/norm", f"{theirs}.norm")]


def _attention(config: UnetConfig, ours: str, theirs: str, kind: StageAttention) -> KeyMap:
    if kind == "full":
        return _qkv(config, ours, f"{theirs}.fn.fn")
    if kind == "linear":
        entries = [
            Entry("norm/scale", ("norm.g",), _CHANNEL_GAIN),
            *conv("to_qkv", "to_qkv", bias=False),
            *conv("to_out", "to_out.0", bias=False),
            Entry("norm_out/scale", ("to_out.1.g",), _CHANNEL_GAIN),
        ]
        return under(entries, target=f"{ours}/", source=f"{theirs}.fn.")
    return []


def _qkv(config: UnetConfig, ours: str, theirs: str) -> KeyMap:
    gain = "gamma" if config.era.gamma_norms else "g"
    entries = [
        *same("null_kv", "null_kv"),
        *same("norm/scale", f"norm.{gain}"),
        *dense("to_q", "to_q", bias=False),
        *dense("to_kv", "to_kv", bias=False),
        *dense("to_out", "to_out.0", bias=False),
        *same("norm_out/scale", f"to_out.1.{gain}"),
    ]
    return under(entries, target=f"{ours}/", source=f"{theirs}.")
