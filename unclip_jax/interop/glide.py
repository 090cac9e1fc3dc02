"""GLIDE's published files (December 2021) as networks of this package, and back.

A file is a flat state dict without a config: ADM's U-Net, the text transformer and the projection
of its last state to the time embedding. Its shapes tell the network but for the heads and the
groups of the norms. Packed rows are always sorted head by head. The noised CLIP is in
`glide_clip.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax.errors import UserError
from unclip_jax.interop.glide_networks import CHANNELS, Glide, GlideConfig
from unclip_jax.interop.infer_unet import HeadOptions, infer_unet
from unclip_jax.interop.key_map import (
    Entry,
    KeyMap,
    dense,
    norm,
    packed,
    same,
    stacked,
    under,
)
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensors
from unclip_jax.interop.transfer import import_params
from unclip_jax.interop.unet_keys import adm_unet_keys
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig

IGNORED = (r"unemb\.(weight|bias)",)
"""Of a text encoder that was also trained to predict words; sampling does not read it."""
TEXT_HEAD_WIDTH = 64
"""Of the published text encoders."""

_UPSAMPLER = replace(
    GlideConfig().unet,
    image_size=256,
    in_channels=6,
    channel_mult=(1, 1, 2, 2, 4, 4),
    depth=(2,),
)
GLIDE_BASE = GlideConfig()
GLIDE_UPSAMPLE = GlideConfig(_UPSAMPLER, is_upsampler=True)
GLIDE_INPAINT = GlideConfig(replace(GlideConfig().unet, in_channels=7), is_inpainting=True)
GLIDE_UPSAMPLE_INPAINT = GlideConfig(
    replace(_UPSAMPLER, in_channels=10), is_upsampler=True, is_inpainting=True
)


@dataclass(frozen=True)
class GlideOptions:
    """What a file's shapes do not tell; the defaults are those of the published files."""

    heads: HeadOptions = HeadOptions()
    """Of the U-Net."""
    text_heads: int | None = None
    """Of the text encoder; None is width // 64."""
    image_size: int | None = None
    """The side the U-Net is meant for; None is 4 * 2 ** levels, 64 or 256 of the published."""

    def __post_init__(self) -> None:
        if self.text_heads is not None and self.text_heads < 1:
            raise UserError(f"--text-heads is {self.text_heads}: give 1 or more")


def load_glide(
    path: Path, options: GlideOptions = GlideOptions(), config: GlideConfig | None = None
) -> tuple[GlideConfig, Any]:
    """As `import_glide`, from a file: torch's or safetensors."""
    return import_glide(open_file(path).tensors, options, what=str(path), config=config)


def import_glide(
    tensors: Tensors,
    options: GlideOptions = GlideOptions(),
    *,
    what: str,
    config: GlideConfig | None = None,
) -> tuple[GlideConfig, Any]:
    """One of the four networks.

    Args:
        what: how a message calls the file.
        config: what the file is; None finds it out.
    Returns:
        The config of a `Glide`, and its params: float32 arrays. The base model's are also those of
        a `Decoder` of `config.decoder()`.
    Raises:
        UserError: the file does not fit.
    """
    config = config or infer_glide(tensors, options, what=what)
    abstract = glide_shapes(config)
    return config, import_params(
        glide_key_map(config), tensors, abstract, what=what, ignored=IGNORED
    )


def infer_glide(
    tensors: Tensors, options: GlideOptions = GlideOptions(), *, what: str
) -> GlideConfig:
    """What a file is, from its names and shapes; see `import_glide`."""
    unet = infer_unet(tensors, options.heads, what=what, image_size=options.image_size)
    table, positions = (
        _matrix(tensors, name, what) for name in ("token_embedding.weight", "positional_embedding")
    )
    width = table[1]
    names = (re.match(r"transformer\.resblocks\.(\d+)\.", name) for name in tensors)
    depth = len({match[1] for match in names if match})
    hidden = _matrix(tensors, "transformer.resblocks.0.mlp.c_fc.weight", what)[0]
    if options.text_heads is None and width % TEXT_HEAD_WIDTH:
        raise UserError(
            f"{what} has a text encoder of width {width}, not a multiple of {TEXT_HEAD_WIDTH}: "
            "give --text-heads"
        )
    heads = options.text_heads or width // TEXT_HEAD_WIDTH
    mlp_width = None if hidden == 4 * width else hidden
    text = TextConfig(table[0], positions[0], TransformerConfig(width, depth, heads, mlp_width))
    kinds = {
        CHANNELS * (1 + upsampler + inpainting) + inpainting: (upsampler, inpainting)
        for upsampler in (False, True)
        for inpainting in (False, True)
    }
    if unet.in_channels not in kinds:
        raise UserError(
            f"{what} has {unet.in_channels} input channels: GLIDE's networks have "
            f"{', '.join(str(n) for n in sorted(kinds))}"
        )
    return GlideConfig(unet, text, *kinds[unet.in_channels])


def glide_key_map(config: GlideConfig) -> KeyMap:
    """A file of GLIDE → params of `Glide`."""
    return [
        *under(adm_unet_keys(config.unet), target="unet/"),
        *_text_keys(config.text),
        *dense("text_to_time", "transformer_proj"),
    ]


def glide_shapes(config: GlideConfig) -> Any:
    """Shapes of the parameters of `Glide`."""
    side, length = config.unet.image_size, config.text.context_length
    picture = jax.ShapeDtypeStruct((1, side, side, CHANNELS), jnp.float32)
    inputs = (
        picture,
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.bool_),
        picture if config.is_upsampler else None,
    )
    return jax.eval_shape(Glide(config).init, jax.random.key(0), *inputs)["params"]


def _text_keys(config: TextConfig) -> KeyMap:
    transformer = config.transformer

    def layer(i: int) -> KeyMap:
        here, there = "text/transformer/blocks", f"transformer.resblocks.{i}"
        return [
            *norm(f"{here}/attention_norm", f"{there}.ln_1"),
            *packed(f"{here}/qkv", f"{there}.attn.c_qkv", transformer.heads),
            *dense(f"{here}/attention_out", f"{there}.attn.c_proj"),
            *norm(f"{here}/mlp_norm", f"{there}.ln_2"),
            *dense(f"{here}/mlp_in", f"{there}.mlp.c_fc"),
            *dense(f"{here}/mlp_out", f"{there}.mlp.c_proj"),
        ]

    return [
        Entry("text/token_embedding/embedding", ("token_embedding.weight",)),
        *same("text/positional_embedding", "positional_embedding"),
        *same("text/padding_embedding", "padding_embedding"),
        *stacked(transformer.depth, layer),
        *norm("text/norm_out", "final_ln"),
    ]


def _matrix(tensors: Tensors, name: str, what: str) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) != 2:
        raise UserError(f"{what} has no matrix {name}: it is no network of GLIDE's")
    return tensors[name].shape
