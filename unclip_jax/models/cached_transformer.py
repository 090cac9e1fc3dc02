"""The transformer, some positions at a time: keys and values of earlier ones are kept as arrays.

The modules here take the parameters of `transformer.Transformer` and compute what it computes under
a causal mask. The cache goes in and comes out: no state is hidden in a collection of variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.models.layers import Dense, activation, attention, layer_norm
from unclip_jax.models.transformer import TransformerConfig


@dataclass(frozen=True)
class Cache:
    """Keys and values of the positions read so far."""

    keys: Array
    """[depth, B, length, heads, head width], compute dtype."""
    values: Array
    """As `keys`."""
    visible: Array
    """[B, length] bool, False at padding, which no position attends to."""


jax.tree_util.register_dataclass(Cache)


def empty_cache(config: TransformerConfig, visible: Array) -> Cache:
    """Room for every position of `visible`, [B, length] bool; none is read yet."""
    shape = (config.depth, *visible.shape, config.heads, config.width // config.heads)
    nothing = jnp.zeros(shape, jnp.dtype(config.dtype))
    return Cache(nothing, nothing, visible)


class CachedBlock(nn.Module):
    """`transformer.Block`, with its parameters, over keys and values that are kept."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, kept: tuple[Array, Array], start: Array | int, mask: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        """`kept` holds [B, length, heads, head width] twice; returns what T positions add to it."""
        c = self.config
        batch, length, width = x_BTD.shape

        def dense(features: int, name: str) -> Dense:
            return Dense(features, dtype=jnp.dtype(c.dtype), name=name)

        qkv = dense(3 * width, "qkv")(layer_norm("attention_norm", c.norm_epsilon)(x_BTD))
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, c.heads, width // c.heads), 2, 0)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
            for old, new in zip(kept, (k, v), strict=True)
        )
        # Not cuDNN: with one query there is nothing to fuse.
        heads = attention(q, keys, values, mask).reshape(batch, length, width)
        x_BTD = x_BTD + dense(width, "attention_out")(heads)
        hidden = dense(c.mlp_width or 4 * width, "mlp_in")(
            layer_norm("mlp_norm", c.norm_epsilon)(x_BTD)
        )
        x_BTD = x_BTD + dense(width, "mlp_out")(activation(c.activation)(hidden))
        return x_BTD, (k, v)


class CachedTransformer(nn.Module):
    """`transformer.Transformer`, with its parameters, over keys and values that are kept."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: Array, cache: Cache, start: Array | int) -> tuple[Array, Cache]:
        """Causal attention of T new positions to themselves and to those before.

        Args:
            x_BTD: [B, T, width], the input at positions `start` to `start + T - 1`.
        Returns:
            [B, T, width], compute dtype, and the cache with these positions.
        """
        length = cache.visible.shape[1]
        causal = jnp.arange(length) <= start + jnp.arange(x_BTD.shape[1])[:, None]
        scan = nn.scan(
            CachedBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.config.depth,
        )
        x_BTD, added = scan(self.config, name="blocks")(
            x_BTD.astype(self.config.dtype),
            (cache.keys, cache.values),
            start,
            causal & cache.visible[:, None, None, :],
        )
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=2)
            for old, new in zip((cache.keys, cache.values), added, strict=True)
        )
        return x_BTD, Cache(keys, values, cache.visible)
