"""CLIP image embedding and caption → picture."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array

from unclip_jax.models.clip import CLIP, CLIPConfig, stage_embedding
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.known import known_channels
from unclip_jax.models.text import text_mask
from unclip_jax.training.masks import random_masks
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import drop_captions, image_embedding, to_float
from unclip_jax.training.objectives.denoising import denoising_loss
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.run import training_chain


def make_decoder_objective(
    recipe: DecoderRecipe, clip_config: CLIPConfig, empty_tokens: np.ndarray
) -> Objective:
    """The diffusion loss of the 64 x 64 decoder, with separate drops of embedding and caption.

    An inpainting decoder is also given what random masks keep of the picture (Nichol et al. 2021,
    section 2.1); the loss is that of the whole picture all the same.

    Arguments as `make_prior_objective`.
    """
    model, clip = Decoder(recipe.model), CLIP(clip_config)
    schedule = training_chain(recipe.diffusion)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        text_key, embedding_key, noise_key, dropout_key = jax.random.split(key, 4)
        x0 = to_float(batch["image"])
        tokens = drop_captions(text_key, recipe.text_drop, batch["tokens"], empty_tokens)
        share = 1 - recipe.embedding_drop
        has_embedding = jax.random.bernoulli(embedding_key, share, x0.shape[:1])
        embedding = None
        if recipe.model.embedding_width is not None:
            embedding = image_embedding(clip, frozen, batch)
        text: tuple[Array, ...] = (tokens, text_mask(tokens))
        if recipe.model.text is None:
            encoded: Any = clip.apply({"params": frozen}, tokens, method=CLIP.encode_text)
            text = (*text, stage_embedding(clip_config, encoded[0]), encoded[1])
        known = None
        if recipe.model.is_inpainting:  # after the four keys of every decoder
            keep = random_masks(jax.random.fold_in(key, 4), x0.shape[:3], recipe.masks)
            known = known_channels(x0, keep)

        def predict(xt: Array, t: Array) -> Array:
            output: Any = model.apply(
                {"params": params},
                xt,
                t,
                embedding,
                has_embedding,
                *text,
                known=known,
                train=True,
                rngs={"dropout": dropout_key},
            )
            return output

        loss, metrics, _ = denoising_loss(recipe.diffusion, schedule, noise_key, x0, predict)
        return loss, metrics

    return objective
