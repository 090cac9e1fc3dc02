"""The pre-LN transformer that CLIP's two towers, the priors and the decoder's text encoder share.

x = x + Attention(LN(x)); x = x + MLP(LN(x)). The layers are one `nn.scan`: their parameters are
stacked on a leading axis [depth, ...], so that the compiled program holds the block once.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.config import Dtype
from unclip_jax.errors import UserError
from unclip_jax.models.layers import (
    EPSILON,
    Activation,
    Attention,
    Dense,
    Dropout,
    Remat,
    activation,
    attention,
    layer_norm,
    rematerialized,
)
from unclip_jax.models.limits import check_sizes


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a tower."""

    width: int = 512
    depth: int = 12
    heads: int = 8
    """Attention heads. OpenAI's CLIP has width // 64; ViT-H, ViT-g and ViT-bigG differ."""
    mlp_width: int | None = None
    """Hidden width of the MLP; None is 4 * width."""
    activation: Activation = "gelu"
    norm_epsilon: float = EPSILON
    """Epsilon of the norms in the blocks."""
    dropout: float = 0.0
    """On both residual branches, in training only."""
    dtype: Dtype = "float32"
    """Compute dtype; parameters stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again: nothing, whole blocks, all but matrix products."""
    attention: Attention = "xla"

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.width % self.heads:
            raise UserError(
                f"width {self.width} is not divisible by heads {self.heads}: change one of them"
            )


class Block(nn.Module):
    """One pre-LN block; a (carry, output) pair because `nn.scan` asks for it."""

    config: TransformerConfig
    train: bool = False

    @nn.compact
    def __call__(self, x_BTD: Array, mask: Array | None) -> tuple[Array, None]:
        c = self.config
        batch, length, width = x_BTD.shape
        normal = nn.initializers.normal

        def dense(features: int, stddev: float, name: str) -> Dense:
            return Dense(features, dtype=jnp.dtype(c.dtype), kernel_init=normal(stddev), name=name)

        # CLIP's initialisation (its released code); the residual branches shrink with depth.
        residual_stddev = width**-0.5 * (2 * c.depth) ** -0.5
        drop = Dropout(c.dropout, deterministic=not self.train)

        qkv = dense(3 * width, width**-0.5, "qkv")(
            layer_norm("attention_norm", c.norm_epsilon)(x_BTD)
        )
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, c.heads, width // c.heads), 2, 0)
        heads = attention(q, k, v, mask, c.attention).reshape(batch, length, width)
        x_BTD = x_BTD + drop(dense(width, residual_stddev, "attention_out")(heads))

        hidden = dense(c.mlp_width or 4 * width, (2 * width) ** -0.5, "mlp_in")(
            layer_norm("mlp_norm", c.norm_epsilon)(x_BTD)
        )
        hidden = activation(c.activation)(hidden)
        x_BTD = x_BTD + drop(dense(width, residual_stddev, "mlp_out")(hidden))
        return x_BTD, None


class Transformer(nn.Module):
    """`depth` blocks; no embedding, no final norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """
        Args:
            x_BTD: [B, T, width].
            mask: bool, broadcastable to [B, heads, T, T]; True may be attended to.
        Returns:
            [B, T, width], compute dtype.
        """
        c = self.config
        scan = nn.scan(
            rematerialized(Block, c.remat, is_scanned=True),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=c.depth,
        )
        x_BTD, _ = scan(c, train, name="blocks")(x_BTD.astype(c.dtype), mask)
        return x_BTD


def causal_mask(length: int) -> Array:
    """[1, 1, length, length] bool: position i may attend to positions 0 to i."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))
