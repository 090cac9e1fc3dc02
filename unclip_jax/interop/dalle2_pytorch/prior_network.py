"""The diffusion prior's network: a causal transformer over text, time and a noised embedding.

    [text encodings x max_text_len | text embedding | time | noised image embedding
     | (last prediction) | learned query]

The prediction is what stands at the last token. Every head of queries reads the same keys and
values, to which one learned pair is prepended. The relative position bias counts that pair as
key 0, so that real key k sits at k + 1: a token, the one before it and all later ones share a
bucket. Norms have a gain and no offset.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.prior_config import (
    BUCKETS,
    ROTARY_WIDTH,
    PriorNetworkConfig,
)
from unclip_jax.models.layers import EPSILON

_COSINE_SCALE = 16.0
_MAX_DISTANCE = 128
_THETA = 10_000.0
_LINEAR_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_TOKEN_INIT = nn.initializers.normal(1.0)


class PriorNetwork(nn.Module):
    """The denoiser of image embeddings. Parameters are float32, norms and softmax too."""

    config: PriorNetworkConfig
    dtype: Any = jnp.float32
    """Of the products; float32 or bfloat16."""

    @nn.compact
    def __call__(
        self,
        x_BD: Array,
        t_B: Array,
        text_embed_BD: Array,
        text_encodings_BLD: Array | None = None,
        *,
        text_mask_BL: Array | None = None,
        self_cond_BD: Array | None = None,
        drop_text_B: Array | None = None,
        drop_image_B: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """The prediction of x_0, noise or v, whichever the prior was trained for.

        Args:
            x_BD: [B, dim] float32, the noised image embedding, scaled by `embed_scale`.
            t_B: [B] int32 in [0, timesteps), the timestep.
            text_embed_BD: [B, dim] float32, the pooled text embedding, norm 1.
            text_encodings_BLD: [B, L, dim] float32 of any length, or none.
            text_mask_BL: [B, L] bool, True for a word; by default every row that is not all zero.
            self_cond_BD: [B, dim] float32, the last prediction; zeros by default. Only with
                `self_cond`.
            drop_text_B, drop_image_B: [B] bool, whose text or noised embedding is left out.
            deterministic: no dropout; otherwise an rng "dropout" is needed.
        Returns:
            [B, dim] float32.
        Raises:
            UserError: embeddings of another width; a drop where the network has no token for it.
        """
        c, s = self.config, self.config.semantics
        self._check(x_BD, text_embed_BD, text_encodings_BLD, drop_text_B, drop_image_B)
        batch = x_BD.shape[0]
        words_BLD = self._padded_words(batch, text_encodings_BLD, text_mask_BL, drop_text_B)
        text_BnD = self._expanded(text_embed_BD, c.num_text_embeds, "text_tokens")
        image_BnD = self._expanded(x_BD, c.num_image_embeds, "image_tokens")
        if s.null_tokens:
            no_text = self.param("null_text_embeds", _TOKEN_INIT, (c.num_text_embeds, c.dim))
            no_image = self.param("null_image_embed", _TOKEN_INIT, (c.dim,))
            if drop_text_B is not None and s.drops_text_embed:
                text_BnD = jnp.where(drop_text_B[:, None, None], no_text, text_BnD)
            if drop_image_B is not None:
                image_BnD = jnp.where(drop_image_B[:, None, None], no_image, image_BnD)
        query = self.param("learned_query", _TOKEN_INIT, (c.dim,))
        last = [jnp.broadcast_to(query, (batch, 1, c.dim))]
        if c.self_cond:
            previous = (jnp.zeros_like(x_BD) if self_cond_BD is None else self_cond_BD)[:, None]
            last = [image_BnD, previous] if s.self_cond_is_query else [previous, *last]
        tokens = [words_BLD, text_BnD, self._time(t_B), image_BnD, *last]
        x_BTD = jnp.concatenate([token.astype(jnp.float32) for token in tokens], axis=1)
        x_BTD = CausalTransformer(c, self.dtype, name="transformer")(x_BTD, deterministic)
        return x_BTD[:, -1].astype(jnp.float32)

    def _check(
        self,
        x: Array,
        text: Array,
        words: Array | None,
        drop_text: Array | None,
        drop_image: Array | None,
    ) -> None:
        shapes = {"image embedding": x, "text embedding": text, "text encodings": words}
        for what, array in shapes.items():
            if array is not None and array.shape[-1] != self.config.dim:
                raise UserError(
                    f"the {what} has width {array.shape[-1]}, but the prior {self.config.dim}: "
                    "use the CLIP that the prior was trained with"
                )
        has_drop = drop_text is not None or drop_image is not None
        if has_drop and not self.config.semantics.null_tokens:
            raise UserError(
                "this prior has no token for a dropped condition (DALLE2-pytorch before 1.9.0): "
                "sample it without guidance"
            )

    def _padded_words(
        self, batch: int, words: Array | None, mask: Array | None, dropped: Array | None
    ) -> Array:
        """[B, max_text_len, dim]: what is no word is a learned vector of its position."""
        c = self.config
        padding = self.param("null_text_encodings", _TOKEN_INIT, (c.max_text_len, c.dim))
        if words is None:
            return jnp.broadcast_to(padding, (batch, c.max_text_len, c.dim))
        if mask is None:
            mask = jnp.any(words != 0, axis=-1)
        if dropped is not None:
            mask = mask & ~dropped[:, None]
        words, mask = words[:, : c.max_text_len], mask[:, : c.max_text_len]
        missing = c.max_text_len - words.shape[1]
        words = jnp.pad(words, ((0, 0), (0, missing), (0, 0)))
        return jnp.where(jnp.pad(mask, ((0, 0), (0, missing)))[..., None], words, padding)

    def _expanded(self, x_BD: Array, count: int, name: str) -> Array:
        if count > 1:
            x_BD = _linear(count * self.config.dim, name, self.dtype, bias=True)(x_BD)
        return x_BD.reshape(-1, count, self.config.dim)

    def _time(self, t_B: Array) -> Array:
        """[B, num_time_embeds, dim]."""
        c = self.config
        width = c.dim * c.num_time_embeds
        if c.num_timesteps is not None:
            embed = nn.Embed(c.num_timesteps, width, embedding_init=_TOKEN_INIT, name="time_table")
            x = embed(t_B)
        else:
            x = _sinusoids(t_B, c.dim)
            if c.semantics.whole_sinusoids:
                x = jnp.trunc(x)
            for name in ("time_in", "time_hidden"):
                x = jax.nn.silu(_linear(2 * width, name, jnp.float32, bias=True)(x))
            x = _linear(width, "time_out", jnp.float32, bias=True)(x)
        return x.reshape(-1, c.num_time_embeds, c.dim)


class CausalTransformer(nn.Module):
    """[B, T, dim] to [B, T, dim]; a token sees those before it."""

    config: PriorNetworkConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_BTD: Array, deterministic: bool) -> Array:
        c = self.config
        table = self.param("relative_bias", _TOKEN_INIT, (BUCKETS, c.heads))
        bias_TSN = table[_relative_buckets(x_BTD.shape[1])] * c.semantics.bias_scale
        if c.norm_in:
            x_BTD = _norm("norm_in", x_BTD, stable=c.semantics.stable_norms)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=c.depth,
        )(c, self.dtype, name="blocks")
        x_BTD, _ = blocks(x_BTD, bias_TSN.transpose(2, 0, 1), deterministic)
        if c.norm_out:
            x_BTD = _norm("norm_out", x_BTD, stable=True)
        return _linear(c.dim, "project_out", self.dtype)(x_BTD) if c.final_proj else x_BTD


class Block(nn.Module):
    """Attention and feed-forward layer, each normed and added."""

    config: PriorNetworkConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_BTD: Array, bias_NTS: Array, deterministic: bool) -> tuple[Array, None]:
        x_BTD = x_BTD + self._attention(x_BTD, bias_NTS, deterministic)
        return x_BTD + self._feed_forward(x_BTD, deterministic), None

    def _attention(self, x_BTD: Array, bias_NTS: Array, deterministic: bool) -> Array:
        c, stable = self.config, self.config.semantics.stable_norms
        x_BTD = _norm("attention_norm", x_BTD, stable=stable)
        q_BTNd = _linear(c.heads * c.dim_head, "query", self.dtype)(x_BTD)
        q_BTNd = q_BTNd.reshape(*q_BTNd.shape[:2], c.heads, c.dim_head).astype(jnp.float32)
        kv_BTd = _linear(2 * c.dim_head, "key_value", self.dtype)(x_BTD).astype(jnp.float32)
        k_BSd, v_BSd = jnp.split(kv_BTd, 2, axis=-1)
        if c.rotary_emb:
            q_BTNd = _rotated(q_BTNd)
            k_BSd = _rotated(k_BSd[:, :, None])[:, :, 0]
        # The learned pair has no position, so it joins after the rotation.
        null_kv = self.param("null_kv", _TOKEN_INIT, (2, c.dim_head))
        k_BSd, v_BSd = (
            jnp.concatenate([jnp.broadcast_to(n, (x.shape[0], 1, c.dim_head)), x], axis=1)
            for n, x in zip(null_kv, (k_BSd, v_BSd), strict=True)
        )
        if c.semantics.attention == "cosine":
            q_BTNd, k_BSd = _unit(q_BTNd) * _COSINE_SCALE**0.5, _unit(k_BSd) * _COSINE_SCALE**0.5
        else:
            q_BTNd = q_BTNd * c.dim_head**-0.5
        logits_BNTS = jnp.einsum(
            "btnd,bsd->bnts", q_BTNd.astype(self.dtype), k_BSd.astype(self.dtype)
        )
        logits_BNTS = logits_BNTS.astype(jnp.float32) + bias_NTS
        queries, keys = logits_BNTS.shape[-2:]
        seen_TS = np.tri(queries, keys, 1, dtype=bool)  # key 0 is the learned one
        logits_BNTS = jnp.where(seen_TS, logits_BNTS, jnp.finfo(jnp.float32).min)
        weights_BNTS = jax.nn.softmax(logits_BNTS, axis=-1)
        weights_BNTS = nn.Dropout(c.attn_dropout)(weights_BNTS, deterministic)
        out_BTNd = jnp.einsum(
            "bnts,bsd->btnd", weights_BNTS.astype(self.dtype), v_BSd.astype(self.dtype)
        )
        out_BTD = out_BTNd.reshape(*out_BTNd.shape[:2], -1)
        out_BTD = _linear(c.dim, "attention_out", self.dtype)(out_BTD)
        return _norm("attention_out_norm", out_BTD, stable=stable)

    def _feed_forward(self, x_BTD: Array, deterministic: bool) -> Array:
        c, stable = self.config, self.config.semantics.stable_norms
        x = _norm("feed_forward_norm", x_BTD, stable=stable)
        x, gate = jnp.split(_linear(2 * c.ff_width, "feed_forward_in", self.dtype)(x), 2, axis=-1)
        x = x * jax.nn.silu(gate)
        if c.normformer:
            x = _norm("feed_forward_inner_norm", x, stable=stable)
        x = nn.Dropout(c.ff_dropout)(x, deterministic)
        return _linear(c.dim, "feed_forward_out", self.dtype)(x)


def _linear(width: int, name: str, dtype: Any, *, bias: bool = False) -> nn.Dense:
    return nn.Dense(width, use_bias=bias, dtype=dtype, kernel_init=_LINEAR_INIT, name=name)


def _norm(name: str, x: Array, *, stable: bool) -> Array:
    """LayerNorm with a gain only; `stable` divides by the largest entry, sign included, first."""
    x = x.astype(jnp.float32)
    if stable:
        x = x / jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    return nn.LayerNorm(
        epsilon=EPSILON, use_bias=False, dtype=jnp.float32, use_fast_variance=False, name=name
    )(x)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def rotary_frequencies(dim_head: int) -> np.ndarray:
    """Angle per position of each rotated pair of channels, float32."""
    width = min(ROTARY_WIDTH, dim_head)
    powers = np.arange(width // 2, dtype=np.float32) * 2 / np.float32(width)
    return (1 / np.float32(_THETA) ** powers).astype(np.float32)


def _rotated(x_BTNd: Array) -> Array:
    """The first pairs (0, 1), (2, 3) ... of channels turned by the position's angles."""
    frequencies = rotary_frequencies(x_BTNd.shape[-1])
    angles = np.arange(x_BTNd.shape[1], dtype=np.float32)[:, None, None] * frequencies
    turned, rest = jnp.split(x_BTNd, [2 * len(frequencies)], axis=-1)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    cos, sin = np.cos(angles), np.sin(angles)
    pairs = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return jnp.concatenate([pairs.reshape(turned.shape), rest], axis=-1)


def _relative_buckets(queries: int) -> np.ndarray:
    """T5's bucket of every query and key, [T, T + 1] in [0, 32): half exact, half logarithmic."""
    distance = np.arange(queries)[:, None] - np.arange(queries + 1)
    distance, exact = np.maximum(distance, 0), BUCKETS // 2
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / exact)
    far = exact + (ratio / math.log(_MAX_DISTANCE / exact) * (BUCKETS - exact)).astype(int)
    return np.where(distance < exact, distance, np.minimum(far, BUCKETS - 1))


def _sinusoids(t_B: Array, width: int) -> Array:
    """[B, width] float32: sines, then cosines; the slowest frequency is 1 / 10000."""
    half = width // 2
    exponents = -np.arange(half, dtype=np.float32) * np.float32(math.log(_THETA) / (half - 1))
    rates = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t_B.astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
