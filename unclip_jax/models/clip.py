"""CLIP: a ViT image encoder and a causal text encoder with one embedding space.

Radford et al. 2021 (arXiv 2103.00020); the options cover OpenAI's and OpenCLIP's released ViTs and
the ViT-H/16 of unCLIP (Ramesh et al. 2022, appendix C).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.layers import EPSILON, Conv, Dense, layer_norm
from unclip_jax.models.limits import check_patches, check_sizes
from unclip_jax.models.transformer import Transformer, TransformerConfig, causal_mask

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = float(np.log(100.0))  # the optimiser keeps the parameter below it


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the space they share."""

    embedding_width: int = 512
    image_size: int = 224
    """Side of the input picture in pixels."""
    patch_size: int = 32
    vision: TransformerConfig | None = TransformerConfig(
        width=768, depth=12, heads=12, activation="quick_gelu"
    )
    """None is a text encoder alone, as a text-to-image model is published with it."""
    text: TransformerConfig = TransformerConfig(
        width=512, depth=12, heads=8, activation="quick_gelu"
    )
    vocab_size: int = 49408
    context_length: int = 77
    norm_epsilon: float = EPSILON
    """Epsilon of the norms outside the blocks."""
    text_norm_epsilon: float | None = None
    """That of the text encoder's last norm; None is `norm_epsilon`."""
    end_of_text: int | None = None
    """Id at whose first position a caption is read; None reads it at the largest id of the row."""
    image_mean: tuple[float, ...] = OPENAI_MEAN
    image_std: tuple[float, ...] = OPENAI_STD
    """Per channel, of pictures in [0, 1]."""
    initial_logit_scale: float = float(np.log(1 / 0.07))
    """Logarithm of the first temperature; ln 10 for the sigmoid loss."""
    has_logit_bias: bool = False
    """A learned bias on the logits, as the sigmoid loss needs it."""
    initial_logit_bias: float = -10.0
    unit_embeddings: bool = True
    """What priors and decoders are given: embeddings of unit norm, or, in Karlo and Kandinsky, as
    the encoders make them."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_patches(self.image_size, self.patch_size)
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise UserError("image_mean and image_std need three numbers each")

    @property
    def image_tower(self) -> TransformerConfig:
        """`vision`, where there is one.

        Raises:
            UserError: this is a text encoder alone.
        """
        if self.vision is None:
            raise UserError(
                "this CLIP has no image encoder (model.vision is None): it reads captions only; "
                "take a CLIP with both encoders"
            )
        return self.vision


class VisionEncoder(nn.Module):
    """ViT with a class token."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """
        Args:
            images: [B, image_size, image_size, 3] float32 in [-1, 1].
        Returns:
            [B, embedding_width] float32, not normalised.
        """
        width = self.config.image_tower.width
        token = self.param("class_embedding", nn.initializers.normal(width**-0.5), (width,))
        token_BD = jnp.broadcast_to(token, (images.shape[0], width))
        return encode_patches(self, self.config, images, token_BD, train=train)


def encode_patches(
    module: nn.Module, config: CLIPConfig, images: Array, token_BD: Array, *, train: bool
) -> Array:
    """ViT that is read at its first token: a norm before the blocks, a projection after them.

    Args:
        module: the encoder that calls this in its compact method; the parameters become its own.
        images: [B, image_size, image_size, 3] float32 in [-1, 1].
        token_BD: [B, vision width], stands before the patches.
    Returns:
        [B, embedding_width] float32, not normalised.
    """
    c, tower, width = config, config.image_tower, config.image_tower.width
    normal = nn.initializers.normal(width**-0.5)
    patch = (c.patch_size, c.patch_size)
    mean, std = jnp.asarray(c.image_mean), jnp.asarray(c.image_std)
    x = ((images + 1) / 2 - mean) / std
    x = Conv(
        width,
        patch,
        strides=patch,
        padding="VALID",
        use_bias=False,
        dtype=jnp.dtype(tower.dtype),
        kernel_init=nn.initializers.lecun_normal(),
        name="patch_embedding",
    )(x)
    x_BTD = x.reshape(x.shape[0], -1, width)
    x_BTD = jnp.concatenate([token_BD[:, None].astype(x_BTD.dtype), x_BTD], axis=1)
    positions = module.param("positional_embedding", normal, (x_BTD.shape[1], width))
    x_BTD = layer_norm("norm_in", c.norm_epsilon)(x_BTD + positions.astype(x_BTD.dtype))
    x_BTD = Transformer(tower, name="transformer")(x_BTD, train=train)
    pooled = layer_norm("norm_out", c.norm_epsilon)(x_BTD[:, 0])
    projection = Dense(c.embedding_width, use_bias=False, kernel_init=normal, name="projection")
    return projection(pooled).astype(jnp.float32)


class TextEncoder(nn.Module):
    """Causal transformer; the caption's feature is its state at the end-of-text token."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> tuple[Array, Array]:
        """
        Args:
            tokens: [B, context_length] int32, zero padded. End of text is the largest id, unless
                the config names it; padding is not masked, the causal mask hides it from the end.
        Returns:
            embedding [B, embedding_width] float32, not normalised, and the hidden states after the
            last norm [B, context_length, text width] float32.
        """
        c, width = self.config, self.config.text.width
        table = nn.Embed(
            c.vocab_size, width, embedding_init=nn.initializers.normal(0.02), name="token_embedding"
        )
        positions = self.param(
            "positional_embedding", nn.initializers.normal(0.01), (c.context_length, width)
        )
        x_BTD = Transformer(c.text, name="transformer")(
            table(tokens) + positions, causal_mask(c.context_length), train=train
        )
        epsilon = c.norm_epsilon if c.text_norm_epsilon is None else c.text_norm_epsilon
        hidden_BTD = layer_norm("norm_out", epsilon)(x_BTD)
        is_end = tokens if c.end_of_text is None else tokens == c.end_of_text
        end_of_text = jnp.argmax(is_end, axis=-1)  # the first, where several are largest
        pooled = jnp.take_along_axis(hidden_BTD, end_of_text[:, None, None], axis=1)[:, 0]
        projection = Dense(
            c.embedding_width,
            use_bias=False,
            kernel_init=nn.initializers.normal(width**-0.5),
            name="projection",
        )
        return projection(pooled).astype(jnp.float32), hidden_BTD.astype(jnp.float32)


class CLIP(nn.Module):
    """Both encoders and the temperature."""

    config: CLIPConfig

    def setup(self) -> None:
        c = self.config
        if c.vision is not None:
            self.vision = VisionEncoder(c)
        self.text = TextEncoder(c)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(c.initial_logit_scale), ()
        )
        if c.has_logit_bias:
            self.logit_bias = self.param(
                "logit_bias", nn.initializers.constant(c.initial_logit_bias), ()
            )

    def __call__(
        self, images: Array | None, tokens: Array, *, train: bool = False
    ) -> dict[str, Array]:
        """
        Args:
            images: [B, image_size, image_size, 3] float32 in [-1, 1]; None where the model is a
                text encoder alone.
            tokens: [B, context_length] int32.
        Returns:
            `image` (if there are any) and `text`, [B, embedding_width] float32 of unit norm;
            `logit_scale`, the factor on their cosines; `logit_bias`, zero where the model has none.
        Raises:
            UserError: images for a text encoder.
        """
        out = {} if images is None else {"image": normalize(self.encode_image(images, train=train))}
        text, _ = self.text(tokens, train=train)
        bias = self.logit_bias if self.config.has_logit_bias else jnp.zeros(())
        return out | {
            "text": normalize(text),
            "logit_scale": jnp.exp(self.logit_scale),
            "logit_bias": bias,
        }

    def encode_image(self, images: Array, *, train: bool = False) -> Array:
        """[B, S, S, 3] float32 in [-1, 1] → [B, embedding_width] float32, not normalised.

        Raises:
            UserError: the model is a text encoder alone.
        """
        _ = self.config.image_tower  # there is one
        return self.vision(images, train=train)

    def encode_text(self, tokens: Array) -> tuple[Array, Array]:
        """[B, context_length] int32 → embedding (not normalised) and hidden states, float32."""
        return self.text(tokens)


def stage_embedding(config: CLIPConfig, embedding: Array) -> Array:
    """[B, E] float32, a CLIP's embedding as its priors and decoders take it."""
    return normalize(embedding) if config.unit_embeddings else embedding


def normalize(x: Array) -> Array:
    """x / ||x|| over the last axis; a zero vector stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
