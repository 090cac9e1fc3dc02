"""DALLE2-pytorch's U-Net as a Flax module, NHWC, float32.

Image embedding, time and low-resolution noise level are one vector that modulates every block;
the time and image tokens are attended to by all stages but the finest, and by the middle together
with the text's. `unet_config` says what the options are.

Two defects of the original are not repeated: where an image embedding is as wide as a token there
is no projection, and its tokens are the embedding itself (the original mixed the rows of a batch);
and every mask is one row's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.unet_blocks import (
    Block,
    CrossEmbed,
    Downsampled,
    LinearAttention,
    ResnetBlock,
    SelfAttention,
    Upsampled,
    conv,
    enlarged,
    sinusoids,
)
from unclip_jax.interop.dalle2_pytorch.unet_config import StageAttention, UnetConfig
from unclip_jax.models.layers import layer_norm

_COMBINER_GROUPS = 8


class Unet(nn.Module):
    """x_t, t and conditions to the prediction; `config` decides what that is given and returns."""

    config: UnetConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        *,
        image_embed: Array | None = None,
        text_encodings: Array | None = None,
        text_mask: Array | None = None,
        lowres_image: Array | None = None,
        lowres_noise_level: Array | None = None,
        self_cond: Array | None = None,
        image_keep: Array | None = None,
        text_keep: Array | None = None,
    ) -> Array:
        """The prediction, [B, H, W, channels_out] float32.

        Args:
            x: [B, H, W, C] float32 in the network's range, [-1, 1] for images.
            t: [B] int32, 0 the least noise.
            image_embed: [B, D] float32, of a U-Net with `cond_on_image_embeds`.
            text_encodings: [B, L, E] float32 of any length, of one with `cond_on_text_encodings`.
            text_mask: [B, L] bool; None: a token whose encoding is not all zeros is there.
            lowres_image: [B, H, W, C] float32, of one with `lowres_cond`.
            lowres_noise_level: [B] int32, of one with `lowres_noise_cond`.
            self_cond: [B, H, W, C], the estimate before; None: zeros.
            image_keep, text_keep: [B] bool, False drops the condition; None keeps every one.
        Raises:
            UserError: a size that the stages cannot halve, or a condition that is missing.
        """
        config = self.config
        _check_inputs(config, x, image_embed, lowres_image)
        lowres_image = lowres_image if config.lowres_cond else None
        inputs = [x]
        if config.self_cond:
            inputs.append(jnp.zeros_like(x) if self_cond is None else self_cond)
        if lowres_image is not None:
            inputs.append(lowres_image)
        x = self._init_conv(jnp.concatenate(inputs, axis=-1))
        stem = x
        time, time_tokens = self._time(t, lowres_noise_level)
        image_hidden, image_tokens = self._image(image_embed, image_keep)
        if image_hidden is not None:
            time = time + image_hidden
        tokens = jnp.concatenate([time_tokens, *image_tokens], axis=1)
        text_tokens = self._text(text_encodings, text_mask, text_keep)
        all_tokens = jnp.concatenate([tokens, *text_tokens], axis=1)
        # Declared even where no block attends to them, as in every file.
        tokens = layer_norm("norm_tokens")(tokens)
        all_tokens = layer_norm("norm_all_tokens")(all_tokens)

        if config.memory_efficient:
            x = self._block("init_block", config.dim, config.groups[0])(x, time)
        skips: list[Array] = []
        for i, stage in enumerate(config.stages):
            name = f"down_{i}"
            if config.memory_efficient:
                x = self._downsampled(f"{name}_before", stage.width_out)(x)
            x = self._block(f"{name}_init", stage.width, stage.groups)(x, time)
            for j in range(stage.blocks):
                block = self._block(f"{name}_block_{j}", stage.width, stage.groups, stage.cross)
                x = block(x, time, tokens)
                skips.append(x)
            x = self._attention(f"{name}_attention", stage.attention)(x)
            skips.append(x)
            if stage.last or config.memory_efficient:
                x = conv(stage.width_out, 1, f"{name}_after")(x)
            else:
                x = self._downsampled(f"{name}_after", stage.width_out)(x)

        groups = config.groups[-1]
        x = self._block("mid_block_1", config.width_mid, groups, True)(x, time, all_tokens)
        x = self._attention("mid_attention", "full")(x)
        x = self._block("mid_block_2", config.width_mid, groups, True)(x, time, all_tokens)

        skip_scale = 2**-0.5 if config.scale_skip_connection else 1.0
        ups = []
        for i, stage in enumerate(reversed(config.stages)):
            for j in range(-1, stage.blocks):
                name = f"up_{i}_block_{j}" if j >= 0 else f"up_{i}_init"
                block = self._block(name, stage.width_out, stage.groups, stage.cross)
                x = jnp.concatenate([x, skips.pop() * skip_scale], axis=-1)
                x = block(x, time, tokens)
            x = self._attention(f"up_{i}_attention", stage.attention)(x)
            ups.append(x)
            if stage.cross or config.memory_efficient:
                x = Upsampled(stage.width_in, config.upsample, name=f"up_{i}_after")(x)
        x = self._combined(x, ups)

        x = jnp.concatenate([x, stem], axis=-1)
        x = self._block("final_block", config.dim, config.groups[0])(x, time)
        if lowres_image is not None and config.lowres_in_last_conv:
            x = jnp.concatenate([x, lowres_image], axis=-1)
        return conv(config.channels_out or config.channels, config.final_conv_kernel_size, "out")(x)

    def _init_conv(self, x: Array) -> Array:
        config = self.config
        if config.init_cross_embed:
            sizes = config.init_cross_embed_kernel_sizes
            return CrossEmbed(config.dim, sizes, 1, name="init_embed")(x)
        return conv(config.dim, config.init_conv_kernel_size, "init_conv")(x)

    def _time(self, t: Array, lowres_noise_level: Array | None) -> tuple[Array, Array]:
        """The time vector [B, 4 dim] and its tokens [B, n, D]."""
        config = self.config
        hidden = _gelu(nn.Dense(config.time_width, name="time_hidden")(sinusoids(t, config.dim)))
        tokens = nn.Dense(config.num_time_tokens * config.token_width, name="time_tokens")(hidden)
        time = nn.Dense(config.time_width, name="time")(hidden)
        if config.lowres_noise_cond and lowres_noise_level is not None:
            level = sinusoids(lowres_noise_level, config.dim)
            level = _gelu(nn.Dense(config.time_width, name="noise_level_hidden")(level))
            time = time + nn.Dense(config.time_width, name="noise_level")(level)
        return time, tokens.reshape(len(t), config.num_time_tokens, config.token_width)

    def _image(
        self, image_embed: Array | None, keep: Array | None
    ) -> tuple[Array | None, list[Array]]:
        """What is added to the time vector, [B, 4 dim], and the tokens, [B, n, D]."""
        config, count, width = self.config, self.config.num_image_tokens, self.config.token_width
        normal = nn.initializers.normal(1.0)
        null_tokens = self.param("null_image_tokens", normal, (count, width))
        null_hidden = self.param("null_image_hidden", normal, (config.time_width,))
        if not config.cond_on_image_embeds or image_embed is None:
            return None, []
        hidden = None
        if config.add_image_embeds_to_time:
            hidden = _gelu(nn.Dense(config.time_width, name="image_hidden")(image_embed))
            hidden = _kept(keep, hidden, null_hidden)
        if config.projects_image_tokens:
            tokens = nn.Dense(count * width, name="image_tokens")(image_embed)
            tokens = tokens.reshape(-1, count, width)
        else:
            tokens = image_embed[:, None].repeat(count, axis=1)
        return hidden, [_kept(keep, tokens, null_tokens)]

    def _text(self, encodings: Array | None, mask: Array | None, keep: Array | None) -> list[Array]:
        """`max_text_len` tokens, [B, L, D], the learned ones where there is no text."""
        config, length = self.config, self.config.max_text_len
        shape = (length, config.token_width)
        null = self.param("null_text_tokens", nn.initializers.normal(1.0), shape)
        if not config.cond_on_text_encodings or encodings is None:
            return []
        mask = jnp.any(encodings != 0, axis=-1) if mask is None else mask
        tokens = nn.Dense(config.token_width, name="text_tokens")(encodings[:, :length])
        missing = length - tokens.shape[1]
        tokens = jnp.pad(tokens, ((0, 0), (0, missing), (0, 0)))
        mask = jnp.pad(mask[:, :length], ((0, 0), (0, missing)))
        if keep is not None:
            mask = mask & keep[:, None]
        return [jnp.where(mask[..., None], tokens, null)]

    def _block(self, name: str, width: int, groups: int, cross: bool = False) -> ResnetBlock:
        return ResnetBlock(
            width,
            groups,
            cross,
            self.config.resnet_weight_standardization,
            self.config.cosine_sim_cross_attn,
            name=name,
        )

    def _attention(self, name: str, kind: StageAttention) -> Callable[[Array], Array]:
        config = self.config
        if kind == "full":
            return SelfAttention(
                config.attn_heads,
                config.attn_dim_head,
                config.cosine_sim_self_attn,
                config.era.squared_attention_scale,
                name=name,
            )
        if kind == "linear":
            return LinearAttention(
                config.attn_heads,
                config.attn_dim_head,
                config.era.normalized_linear_attention,
                name=name,
            )
        return lambda x: x

    def _downsampled(self, name: str, width: int) -> Downsampled:
        sizes = self.config.cross_embed_downsample_kernel_sizes
        return Downsampled(width, self.config.downsample, sizes, name=name)

    def _combined(self, x: Array, ups: list[Array]) -> Array:
        """The maps of all stages at full size beside x (U-Net squared, Qin et al. 2020)."""
        if not self.config.combine_upsample_fmaps:
            return x
        maps = [
            Block(self.config.dim, _COMBINER_GROUPS, name=f"combine_{i}")(
                enlarged(up, x.shape[2] // up.shape[2])
            )
            for i, up in enumerate(ups)
        ]
        return jnp.concatenate([x, *maps], axis=-1)


def abstract_params(config: UnetConfig) -> Any:
    """Shapes of the U-Net's parameters, without computing one."""
    size, f32 = config.size_multiple, jnp.float32

    def shape(*axes: int, dtype: Any = f32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(axes, dtype)

    image = shape(1, size, size, config.channels)
    conditions = {
        "image_embed": shape(1, config.image_embed_dim or 1),
        "text_encodings": shape(1, 1, config.text_embed_dim or 1),
        "lowres_noise_level": shape(1, dtype=jnp.int32),
        "lowres_image": image,
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    level = shape(1, dtype=jnp.int32)
    return jax.eval_shape(Unet(config).init, key, image, level, **conditions)["params"]


def unet_inputs(
    config: UnetConfig,
    image_embed: Array | None,
    text_encodings: Array | None,
    text_mask: Array | None = None,
) -> dict[str, Array]:
    """Those of a cascade's conditions that this U-Net takes."""
    given: dict[str, Array | None] = {}
    if config.cond_on_image_embeds:
        given["image_embed"] = image_embed
    if config.cond_on_text_encodings:
        given |= {"text_encodings": text_encodings, "text_mask": text_mask}
    return {name: value for name, value in given.items() if value is not None}


def evaluate(config: UnetConfig, params: Any, x: Array, t: Array, **conditions: Any) -> Array:
    """`Unet.__call__` with these weights."""
    output: Any = Unet(config).apply({"params": params}, x, t, **conditions)
    return output


def guided(
    config: UnetConfig, params: Any, x: Array, t: Array, scale: float, **conditions: Any
) -> Array:
    """Classifier-free guidance: without + scale * (with - without), image and text dropped at once.

    Args:
        scale: 1 is the conditional prediction alone, at one evaluation.
        conditions: keyword arguments of `Unet.__call__`, arrays with a batch axis or None.
    """
    if scale == 1:
        return evaluate(config, params, x, t, **conditions)
    keep = jnp.repeat(jnp.array([True, False]), len(x))
    doubled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (x, t, conditions))
    out = evaluate(config, params, *doubled[:2], **doubled[2], image_keep=keep, text_keep=keep)
    with_conditions, without = jnp.split(out, 2)
    return without + (with_conditions - without) * scale


def _kept(keep: Array | None, value: Array, null: Array) -> Array:
    if keep is None:
        return value
    return jnp.where(keep.reshape(-1, *[1] * (value.ndim - 1)), value, null)


def _gelu(x: Array) -> Array:
    return nn.gelu(x, approximate=False)


def _check_inputs(
    config: UnetConfig, x: Array, image_embed: Array | None, lowres_image: Array | None
) -> None:
    if x.shape[1] % config.size_multiple or x.shape[2] % config.size_multiple:
        raise UserError(
            f"an image of {x.shape[1]} x {x.shape[2]} cannot be halved by every stage: "
            f"give a size that is a multiple of {config.size_multiple}"
        )
    if config.lowres_cond and lowres_image is None:
        raise UserError("lowres_image is missing, which this U-Net is conditioned on: pass it")
    if config.cond_on_image_embeds and image_embed is None:
        raise UserError("image_embed is missing, which this U-Net is conditioned on: pass it")
