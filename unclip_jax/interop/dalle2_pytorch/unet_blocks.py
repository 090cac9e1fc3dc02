"""The pieces of DALLE2-pytorch's U-Net, NHWC and float32.

Every epsilon is 1e-5 and every GELU exact. Channels of the pixel shuffle are ordered channel by
channel, [c, row, column], as in PyTorch.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from unclip_jax.interop.dalle2_pytorch.unet_config import Downsample, Upsample
from unclip_jax.models.layers import EPSILON, GroupNorm, attention

CROSS_HEADS, CROSS_HEAD_WIDTH = 8, 64
"""Cross-attention has these in every network of the family."""
_COSINE_SCALE = 16.0


def gain_norm(name: str) -> nn.LayerNorm:
    """LayerNorm without bias."""
    return nn.LayerNorm(epsilon=EPSILON, use_bias=False, use_fast_variance=False, name=name)


def conv(features: int, size: int, name: str, *, stride: int = 1) -> nn.Conv:
    """A convolution that keeps the size, or divides it by `stride`, padded as the family does."""
    pad = (size - stride) // 2
    return nn.Conv(features, (size, size), (stride, stride), padding=[(pad, pad)] * 2, name=name)


def sinusoids(t: Array, width: int) -> Array:
    """[sin | cos] of a number; the frequencies reach 1 / 10000 exactly.

    Args:
        t: [B] int32 or float32.
    Returns:
        [B, width] float32.
    """
    half = width // 2
    # Rounded as torch does; XLA's exponential is less exact than torch's.
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000) / (half - 1))
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class StandardizedConv(nn.Module):
    """A 3 x 3 convolution whose kernel has mean 0 and variance 1 per output channel.

    Weight standardisation (Qiao et al. 2019).
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        mean, variance = (f(kernel, axis=(0, 1, 2)) for f in (jnp.mean, jnp.var))
        kernel = (kernel - mean) * jax.lax.rsqrt(variance + EPSILON)
        return bias + jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class Block(nn.Module):
    """Convolution, group norm, scale and shift, SiLU."""

    features: int
    groups: int
    standardized: bool = False

    @nn.compact
    def __call__(self, x: Array, scale_shift: tuple[Array, Array] | None = None) -> Array:
        name = "project"
        x = (
            StandardizedConv(self.features, name=name)
            if self.standardized
            else conv(self.features, 3, name)
        )(x)
        x = GroupNorm(self.groups, name="norm")(x)
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return nn.silu(x)


class ResnetBlock(nn.Module):
    """Two blocks around an optional cross-attention to the conditioning tokens."""

    features: int
    groups: int
    cross: bool = False
    standardized: bool = False
    cosine: bool = False

    @nn.compact
    def __call__(self, x: Array, time: Array, tokens: Array | None = None) -> Array:
        """[B, H, W, features] from [B, H, W, C], the time vector [B, T] and tokens [B, N, D]."""
        modulation = nn.Dense(2 * self.features, name="time")(nn.silu(time))[:, None, None]
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = Block(self.features, self.groups, self.standardized, name="block_1")(x, (scale, shift))
        if self.cross:
            assert tokens is not None
            flat = h.reshape(h.shape[0], -1, h.shape[-1])
            flat = CrossAttention(self.cosine, name="cross_attention")(flat, tokens) + flat
            h = flat.reshape(h.shape)
        h = Block(self.features, self.groups, self.standardized, name="block_2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, "skip")(x)
        return h + x


class CrossAttention(nn.Module):
    """Attention to tokens and to a learned null token, with a norm before and after."""

    cosine: bool = False

    @nn.compact
    def __call__(self, x: Array, tokens: Array) -> Array:
        """[B, L, C] from x [B, L, C] and tokens [B, N, D]."""
        inner = CROSS_HEADS * CROSS_HEAD_WIDTH
        q = nn.Dense(inner, use_bias=False, name="to_q")(gain_norm("norm")(x))
        kv = nn.Dense(2 * inner, use_bias=False, name="to_kv")(tokens)
        out = _attend_with_null(
            self, q, kv, CROSS_HEADS, CROSS_HEADS, CROSS_HEAD_WIDTH, self.cosine
        )
        return gain_norm("norm_out")(nn.Dense(x.shape[-1], use_bias=False, name="to_out")(out))


class SelfAttention(nn.Module):
    """Attention between positions with one key and value for all heads; adds its input."""

    heads: int
    head_width: int
    cosine: bool = False
    squared_scale: bool = True
    """1 / d in place of 1 / sqrt(d), which these weights were trained with."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] float32."""
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        h = gain_norm("norm")(flat)
        q = nn.Dense(self.heads * self.head_width, use_bias=False, name="to_q")(h)
        kv = nn.Dense(2 * self.head_width, use_bias=False, name="to_kv")(h)
        if self.squared_scale and not self.cosine:
            q = q * self.head_width**-0.5
        out = _attend_with_null(self, q, kv, self.heads, 1, self.head_width, self.cosine)
        out = gain_norm("norm_out")(nn.Dense(x.shape[-1], use_bias=False, name="to_out")(out))
        return (flat + out).reshape(x.shape)


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the positions (Shen et al. 2018); adds its input."""

    heads: int
    head_width: int
    normalized: bool = True
    """Values of unit norm, and keys and values divided by the root of the area."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] float32."""
        batch, height, width, channels = x.shape
        qkv = nn.Conv(3 * self.heads * self.head_width, (1, 1), use_bias=False, name="to_qkv")(
            gain_norm("norm")(x)
        )
        qkv = qkv.reshape(batch, height * width, 3, self.heads, self.head_width)
        q_BNhd, k_BNhd, v_BNhd = (qkv[:, :, i] for i in range(3))
        q_BNhd = jax.nn.softmax(q_BNhd, axis=-1) * self.head_width**-0.5
        k_BNhd = jax.nn.softmax(k_BNhd, axis=1)
        if self.normalized:
            v_BNhd = _unit(v_BNhd) / (height * width)
        context = jnp.einsum("bnhd,bnhe->bhde", k_BNhd, v_BNhd)
        out = jnp.einsum("bnhd,bhde->bnhe", q_BNhd, context)
        out = nn.gelu(out.reshape(batch, height, width, -1), approximate=False)
        out = nn.Conv(channels, (1, 1), use_bias=False, name="to_out")(out)
        return x + gain_norm("norm_out")(out)


class CrossEmbed(nn.Module):
    """Convolutions of several sizes side by side (CrossFormer, Wang et al. 2021).

    The smallest kernel has half of the channels, the next a quarter, the last what is left.
    """

    features: int
    sizes: tuple[int, ...]
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        sizes = sorted(self.sizes)
        shares = [self.features // 2**i for i in range(1, len(sizes))]
        shares.append(self.features - sum(shares))
        maps = [
            conv(share, size, f"conv_{i}", stride=self.stride)(x)
            for i, (share, size) in enumerate(zip(shares, sizes, strict=True))
        ]
        return jnp.concatenate(maps, axis=-1)


class Downsampled(nn.Module):
    """Half the resolution. [B, H, W, C] to [B, H/2, W/2, features]."""

    features: int
    kind: Downsample
    sizes: tuple[int, ...]
    """Kernels of `cross_embed`."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind == "cross_embed":
            return CrossEmbed(self.features, self.sizes, 2, name="embed")(x)
        if self.kind == "conv4x4":
            return conv(self.features, 4, "conv", stride=2)(x)
        return conv(self.features, 1, "conv")(pixel_unshuffle(x))


class Upsampled(nn.Module):
    """Twice the resolution. [B, H, W, C] to [B, 2H, 2W, features]."""

    features: int
    kind: Upsample

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind == "pixel_shuffle":
            return pixel_shuffle(nn.silu(conv(4 * self.features, 1, "conv")(x)))
        if self.kind == "nearest":
            return conv(self.features, 3, "conv")(x.repeat(2, axis=1).repeat(2, axis=2))
        transposed = nn.ConvTranspose(
            self.features,
            (4, 4),
            (2, 2),
            padding=[(2, 2), (2, 2)],
            transpose_kernel=True,  # the gradient of a convolution, as in PyTorch
            name="conv",
        )
        return transposed(x)


def pixel_shuffle(x: Array) -> Array:
    """[B, H, W, 4 C] to [B, 2H, 2W, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def pixel_unshuffle(x: Array) -> Array:
    """[B, H, W, C] to [B, H/2, W/2, 4 C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def enlarged(x: Array, factor: int) -> Array:
    """Cubic interpolation (Keys, a = -0.5) to `factor` times the size, zeros beyond the edges.

    Args:
        x: [B, H, W, C] float32.
    """
    if factor == 1:
        return x
    rows, columns = (jnp.asarray(_cubic_weights(size, factor)) for size in x.shape[1:3])
    return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, x)


def _cubic_weights(size: int, factor: int) -> np.ndarray:
    """[size * factor, size] float32; rows near an edge sum to less than 1, as zeros are beyond."""
    centre = (np.arange(size * factor) + 0.5) / factor - 0.5
    distance = np.abs(centre[:, None] - np.arange(size))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance <= 1, near, np.where(distance <= 2, far, 0)).astype(np.float32)


def _attend_with_null(
    module: nn.Module,
    q_BTC: Array,
    kv_BSC: Array,
    heads: int,
    kv_heads: int,
    width: int,
    cosine: bool,
) -> Array:
    """Attention to [null | keys], the null key and value shared by all heads. [B, T, heads * d]."""
    null_2d = module.param("null_kv", nn.initializers.normal(1.0), (2, width))
    batch = q_BTC.shape[0]
    q = q_BTC.reshape(batch, -1, heads, width)
    k, v = (
        jnp.concatenate(
            [
                jnp.broadcast_to(null, (batch, 1, kv_heads, width)),
                part.reshape(batch, -1, kv_heads, width),
            ],
            axis=1,
        )
        for null, part in zip(null_2d, jnp.split(kv_BSC, 2, axis=-1), strict=True)
    )
    if cosine:
        # `attention` divides by sqrt(d), which is taken back here.
        q, k = _unit(q) * (_COSINE_SCALE * width**0.5), _unit(k)
    return attention(q, k, v).reshape(batch, -1, heads * width)


def _unit(x: Array) -> Array:
    """Of norm 1 over the last axis; a zero vector stays zero and has a gradient."""
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
    return x / norm
