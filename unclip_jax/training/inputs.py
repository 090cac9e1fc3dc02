"""What a run works on besides its own state: data, tokenizer, the frozen CLIP, the objective."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.data.captions import all_captions
from unclip_jax.data.sources import Source, open_source
from unclip_jax.data.tokenizer import Tokenizer, make_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.training.objectives import Objective
from unclip_jax.training.objectives.clip import make_clip_objective
from unclip_jax.training.objectives.decoder import make_decoder_objective
from unclip_jax.training.objectives.prior import make_prior_objective
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.run_folder import check_same_run
from unclip_jax.training.weights import Stage, load_clip


@dataclass(frozen=True)
class Inputs:
    """Opened and checked against the recipe."""

    source: Source
    tokenizer: Tokenizer
    clip: Stage | None
    """The frozen CLIP of a prior or a decoder."""

    @property
    def clip_id(self) -> str | None:
        """Of the frozen CLIP; None for a CLIP in training."""
        return self.clip.clip_id if self.clip else None


def open_inputs(recipe: Recipe, workdir: Path) -> Inputs:
    """Data, tokenizer and the frozen CLIP.

    Raises:
        UserError: they do not fit the recipe, or the run that `workdir` holds.
    """
    saved_clip = check_same_run(recipe, workdir)
    clip = None if isinstance(recipe, CLIPRecipe) else load_clip(recipe.clip)
    source = open_source(recipe.data)
    if isinstance(recipe, CLIPRecipe):
        saved = workdir / "tokenizer.json"
        if saved.exists():
            return Inputs(source, Tokenizer.load(saved), None)
        corpus = None
        if recipe.tokenizer.kind == "trained":
            corpus = (text for i in range(len(source)) for text in _captions(source, i))
        return Inputs(source, make_tokenizer(recipe.tokenizer, corpus), None)
    assert clip is not None
    _check_fits_clip(recipe, clip)
    if saved_clip is not None and saved_clip != clip.clip_id:
        raise UserError(
            f"{workdir} was trained for CLIP {saved_clip}, {recipe.clip} holds {clip.clip_id}: "
            "name the CLIP it began with, or another --workdir"
        )
    return Inputs(source, clip.tokenizer, clip)


def make_objective(recipe: Recipe, inputs: Inputs) -> tuple[Objective, Any]:
    """The stage's objective and the frozen weights it takes."""
    if isinstance(recipe, CLIPRecipe):
        return make_clip_objective(recipe), {}
    assert inputs.clip is not None and isinstance(inputs.clip.recipe, CLIPRecipe)
    clip_config, frozen = inputs.clip.recipe.model, inputs.clip.params
    empty = np.asarray(inputs.tokenizer([""]))[0]
    if isinstance(recipe, PriorRecipe):
        return make_prior_objective(recipe, clip_config, empty), frozen
    return make_decoder_objective(recipe, clip_config, empty), frozen


def _captions(source: Source, index: int) -> tuple[str, ...]:
    return all_captions(source[index].captions)


def _check_fits_clip(recipe: PriorRecipe | DecoderRecipe, clip: Stage) -> None:
    """Widths and context of the frozen CLIP are those that the recipe names."""
    if not isinstance(clip.recipe, CLIPRecipe):
        raise UserError(f"{recipe.clip} is not a CLIP: name the run or folder of one in `clip`")
    have, model = clip.recipe.model, recipe.model
    pairs = [("embedding_width", model.embedding_width, have.embedding_width)]
    if isinstance(recipe, PriorRecipe):
        pairs.append(("text_width", recipe.model.text_width, have.text.width))
        pairs.append(("context_length", recipe.model.context_length, have.context_length))
    else:
        text = recipe.model.text
        pairs.append(("text.context_length", text.context_length, have.context_length))
        if text.vocab_size < clip.tokenizer.vocab_size:
            pairs.append(("text.vocab_size", text.vocab_size, clip.tokenizer.vocab_size))
    for name, given, needed in pairs:
        if given != needed:
            raise UserError(
                f"model.{name} is {given}, the CLIP in {recipe.clip} has {needed}: "
                f"pass --model.{name.replace('_', '-')} {needed}"
            )
