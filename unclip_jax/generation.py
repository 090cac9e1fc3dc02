"""What the stages compute when they generate: pure functions of parameters, conditions and keys.

Each can be jitted, differentiated or replaced alone; `pipeline.py` batches and compiles them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.guidance import classifier_free_guidance
from unclip_jax.diffusion.samplers import SamplerConfig, sample, sampling_schedule
from unclip_jax.diffusion.schedule import Schedule, make_schedule
from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIP, CLIPConfig, normalize
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.text import text_mask
from unclip_jax.training.recipe import DecoderRecipe, DiffusionConfig, PriorRecipe


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn unless the call says otherwise; a model folder's sampling.json."""

    prior: SamplerConfig = SamplerConfig(
        method="ddpm", num_steps=64, thresholding="none", guidance_scale=1.0
    )
    """The paper's 64 steps, unguided; embeddings are not clipped to [-1, 1]."""
    decoder: SamplerConfig = SamplerConfig(method="ddim", num_steps=50, guidance_scale=3.0)
    num_candidates: int = 2
    """Image embeddings drawn for a picture; the one nearest to the text embedding is kept."""
    batch_size: int = 8
    """Pictures a device and call."""

    def __post_init__(self) -> None:
        if self.num_candidates < 1 or self.batch_size < 1:
            raise UserError(
                f"num_candidates is {self.num_candidates} and batch_size {self.batch_size}: "
                "give 1 or more of each"
            )


@dataclass(frozen=True)
class Caption:
    """Encoded captions, what the prior and the decoder take."""

    tokens: Array
    """[B, L] int32."""
    embedding: Array
    """[B, E] float32, unit norm."""
    states: Array
    """[B, L, text width] float32."""


jax.tree_util.register_dataclass(Caption)


def encode_caption(config: CLIPConfig, params: Any, tokens: Array) -> Caption:
    """Captions as the prior and the decoder take them.

    Args:
        params: of CLIP.
        tokens: [B, L] int32.
    """
    encoded: Any = CLIP(config).apply({"params": params}, tokens, method=CLIP.encode_text)
    embedding, states = encoded
    return Caption(tokens, normalize(embedding), states)


def sample_embedding(
    recipe: PriorRecipe,
    params: Any,
    caption: Caption,
    empty: Caption,
    keys: Array,
    config: SamplerConfig,
    num_candidates: int,
) -> Array:
    """Image embeddings for captions (Ramesh et al. 2022, section 2.2).

    Args:
        params: of the prior.
        empty: the encoded empty caption, one row; stands for "no caption" in guidance.
        keys: [B] typed keys.
        num_candidates: draws for a row; the one with the largest dot product with the text
            embedding is kept. The paper draws 2.
    Returns:
        [B, E] float32, unit norm.
    """
    module, width = DiffusionPrior(recipe.model), recipe.model.embedding_width
    rows = caption.tokens.shape[0] * num_candidates
    condition = jax.tree.map(lambda x: jnp.repeat(x, num_candidates, axis=0), caption)
    keys = jax.vmap(lambda key: jax.random.split(key, num_candidates))(keys).reshape(rows)

    def run(xt: Array, t: Array, text: Caption) -> Array:
        mask = text_mask(text.tokens)
        output: Any = module.apply({"params": params}, xt, t, text.embedding, text.states, mask)
        return output

    drawn = sample(
        _guided(run, condition, empty, config.guidance_scale, has_variance=False),
        _schedule(recipe.diffusion, config),
        (rows, width),
        config=config,
        prediction=recipe.diffusion.prediction,
        variance=recipe.diffusion.variance,
        keys=keys,
    )
    candidates = normalize(drawn).reshape(-1, num_candidates, width)
    scores = jnp.einsum("bcd,bd->bc", candidates, caption.embedding)
    best = jnp.argmax(scores, axis=1)
    return jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]


def decode_embedding(
    recipe: DecoderRecipe,
    params: Any,
    embedding: Array,
    tokens: Array,
    empty_tokens: Array,
    keys: Array,
    config: SamplerConfig,
) -> Array:
    """Pictures from image embeddings and captions (Ramesh et al. 2022, section 2.1).

    Guidance drops embedding and caption together.

    Args:
        params: of the decoder.
        embedding: [B, E] float32, unit norm.
        tokens: [B, L] int32.
        empty_tokens: [1, L] int32, the empty caption.
        keys: [B] typed keys.
    Returns:
        [B, H, W, 3] float32 in [-1, 1].
    """
    module, size = Decoder(recipe.model), recipe.model.unet.image_size
    rows = embedding.shape[0]

    def run(xt: Array, t: Array, given: tuple[Array, Array, Array]) -> Array:
        vectors, has_embedding, tokens = given
        output: Any = module.apply(
            {"params": params}, xt, t, vectors, has_embedding, tokens, text_mask(tokens)
        )
        return output

    condition = (embedding, jnp.ones(rows, bool), tokens)
    nothing = (jnp.zeros_like(embedding[:1]), jnp.zeros(1, bool), empty_tokens)
    learned = recipe.diffusion.variance == "learned_range"
    return sample(
        _guided(run, condition, nothing, config.guidance_scale, has_variance=learned),
        _schedule(recipe.diffusion, config),
        (rows, size, size, 3),
        config=config,
        prediction=recipe.diffusion.prediction,
        variance=recipe.diffusion.variance,
        keys=keys,
    )


def image_keys(seed: int, indices: Sequence[int]) -> Array:
    """[N] typed keys: fold_in(key(seed), index)."""
    return _fold_each(jax.random.key(seed), jnp.asarray(indices))


def to_uint8(images: Array) -> Array:
    """[-1, 1] float32 → [0, 255] uint8, rounded."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


@jax.jit
def _fold_each(key: Array, numbers: Array) -> Array:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


@jax.jit
def fold_keys(keys: Array, number: int) -> Array:
    """[N] typed keys: fold_in(key, number) of each."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _schedule(diffusion: DiffusionConfig, config: SamplerConfig) -> Schedule:
    return sampling_schedule(make_schedule(diffusion.schedule, diffusion.num_timesteps), config)


def _guided(
    run: Callable[[Array, Array, Any], Array],
    condition: Any,
    nothing: Any,
    scale: float,
    *,
    has_variance: bool,
) -> Callable[[Array, Array], Array]:
    """The network under its condition, guided away from `nothing` (one row) if scale is not 1.

    Both branches run as one batch of twice the rows.
    """
    if scale == 1.0:
        return lambda xt, t: run(xt, t, condition)
    both = jax.tree.map(
        lambda c, n: jnp.concatenate([c, jnp.broadcast_to(n, c.shape)]), condition, nothing
    )

    def denoise(xt: Array, t: Array) -> Array:
        output = run(jnp.concatenate([xt, xt]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(output, 2)
        return classifier_free_guidance(
            conditional, unconditional, scale, learned_variance=has_variance
        )

    return denoise
