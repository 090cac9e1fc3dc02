"""An imported CLIP as the stage that a model folder begins with."""

from __future__ import annotations

from dataclasses import replace

from unclip_jax.config import DataConfig
from unclip_jax.data.tokenizer import Tokenizer, TokenizerConfig
from unclip_jax.errors import UserError
from unclip_jax.interop.clip import ImportedCLIP
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.weights import Stage, weights_id


def clip_stage(imported: ImportedCLIP, *, unit_embeddings: bool = True) -> Stage:
    """A stage named `clip`.

    Args:
        unit_embeddings: whether the stages that work with it take embeddings of unit norm.
    Raises:
        UserError: a vocabulary that is not known.
    """
    tokenizer = imported.tokenizer
    if tokenizer is None:
        raise UserError(
            "this CLIP's vocabulary is not OpenAI's: name its tokenizer's folder with --tokenizer"
        )
    model = replace(imported.config, unit_embeddings=unit_embeddings)
    recipe = CLIPRecipe(
        model=model,
        tokenizer=_tokenizer_config(tokenizer),
        loss="sigmoid" if model.has_logit_bias else "softmax",
        data=DataConfig(image_size=model.image_size),
    )
    return Stage(recipe, imported.params, tokenizer, 0, weights_id(imported.params))


def clip_config(stage: Stage) -> CLIPConfig:
    """Of a stage that is a CLIP."""
    assert isinstance(stage.recipe, CLIPRecipe)
    return stage.recipe.model


def _tokenizer_config(tokenizer: Tokenizer) -> TokenizerConfig:
    return TokenizerConfig(tokenizer.kind, tokenizer.vocab_size, tokenizer.context_length)
