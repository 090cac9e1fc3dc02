"""What a run works on besides its own state: data, tokenizer, the frozen CLIP, the objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import all_captions
from unclip_jax.data.embedding_batches import make_embedding_batches
from unclip_jax.data.embedding_store import EmbeddingStore, check_fits, open_store
from unclip_jax.data.images import BadImage
from unclip_jax.data.picture_reader import read_record
from unclip_jax.data.pipeline import Batch, Tokenize, make_batches
from unclip_jax.data.sources import Source, open_source
from unclip_jax.data.tokenizer import Tokenizer, make_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.training.codes import FILE, fit_codes_on_data, load_codes, save_codes
from unclip_jax.training.objectives import Objective
from unclip_jax.training.objectives.ar_prior import make_ar_prior_objective
from unclip_jax.training.objectives.baseline_priors import (
    make_linear_prior_objective,
    make_one_step_prior_objective,
)
from unclip_jax.training.objectives.clip import make_clip_objective
from unclip_jax.training.objectives.decoder import make_decoder_objective
from unclip_jax.training.objectives.prior import make_prior_objective
from unclip_jax.training.objectives.steering import (
    make_classifier_objective,
    make_labeler,
    make_noised_clip_objective,
)
from unclip_jax.training.objectives.upsampler import make_upsampler_objective
from unclip_jax.training.recipe import ON_CLIP, AnyPriorRecipe, Recipe
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.run_folder import check_same_run
from unclip_jax.training.weights import Stage, load_clip

CORPUS = 20_000
"""Records whose captions a tokenizer is trained on, at most: all are read once before the run."""


@dataclass(frozen=True)
class Inputs:
    """Opened and checked against the recipe."""

    source: Source | None
    """Pictures and captions; None for a prior that reads all it needs from `store`."""
    tokenizer: Tokenizer | None
    """None for an upsampler and a classifier, which read no captions."""
    clip: Stage | None = None
    """The frozen CLIP of a prior or a decoder, on the host."""
    store: EmbeddingStore | None = None
    """Embeddings of the pictures, if the recipe names a store."""
    codes: EmbeddingCodes | None = None
    """Of an autoregressive prior."""

    @property
    def clip_id(self) -> str | None:
        """Of the frozen CLIP; None for a stage without one."""
        return self.clip.clip_id if self.clip else None

    def __len__(self) -> int:
        """Pictures of an epoch."""
        pictures = self.source if self.source is not None else self.store
        assert pictures is not None
        return len(pictures)


def open_inputs(recipe: Recipe, workdir: Path, bad: BadRecords | None = None) -> Inputs:
    """Data, tokenizer and the frozen CLIP.

    Args:
        bad: counts the records that cannot be read where a tokenizer is trained on all.
    Raises:
        UserError: they do not fit the recipe, or the run that `workdir` holds; or too many records
            cannot be read.
    """
    saved_clip = check_same_run(recipe, workdir)
    if isinstance(recipe, ON_CLIP):
        return _open_on_clip(recipe, workdir, saved_clip)
    if recipe.data.embeddings is not None:
        raise UserError(
            f"data.embeddings is {recipe.data.embeddings!r}, but this stage reads no CLIP "
            "embeddings: leave it out"
        )
    source = open_source(recipe.data)
    if isinstance(recipe, UpsamplerRecipe | ClassifierRecipe):
        return Inputs(source, None)
    saved = workdir / "tokenizer.json"
    if saved.exists():
        return Inputs(source, Tokenizer.load(saved))
    corpus = None
    if recipe.tokenizer.kind == "trained":
        corpus = _all_captions(source, bad or BadRecords())
    return Inputs(source, make_tokenizer(recipe.tokenizer, corpus))


def _open_on_clip(
    recipe: AnyPriorRecipe | DecoderRecipe, workdir: Path, saved_clip: str | None
) -> Inputs:
    clip = load_clip(recipe.clip, as_stored=True)
    check_fits_clip(recipe, clip)
    if saved_clip is not None and saved_clip != clip.clip_id:
        raise UserError(
            f"{workdir} was trained for CLIP {saved_clip}, {recipe.clip} holds {clip.clip_id}: "
            "name the CLIP it began with, or another --workdir"
        )
    source = store = None
    if recipe.data.embeddings is not None:
        if recipe.model.embedding_width is None:
            raise UserError(
                f"data.embeddings is {recipe.data.embeddings!r}, but a decoder with "
                "model.embedding_width None reads none: leave it out"
            )
        store = open_store(recipe.data.embeddings)
    if store is None or isinstance(recipe, DecoderRecipe):
        source = open_source(recipe.data)
    assert clip.tokenizer is not None
    if store is not None:
        check_fits(
            store, clip_id=clip.clip_id, tokenizer=clip.tokenizer, data=recipe.data, source=source
        )
    codes = None
    if isinstance(recipe, ARPriorRecipe):
        codes = _open_codes(recipe, workdir, clip, store if store is not None else source)
    return Inputs(source, clip.tokenizer, clip, store, codes)


def _open_codes(
    recipe: ARPriorRecipe, workdir: Path, clip: Stage, source: Source | EmbeddingStore | None
) -> EmbeddingCodes:
    """The run's own codes; for a new run those of the named file, or fitted here."""
    if (workdir / FILE).exists():
        return load_codes(workdir / FILE, recipe.model)
    if recipe.codes is not None:
        codes = load_codes(Path(recipe.codes).expanduser(), recipe.model)
    else:
        assert isinstance(clip.recipe, CLIPRecipe) and source is not None
        model, params = clip.recipe.model, jax.device_put(clip.params)
        codes = fit_codes_on_data(model, params, clip.tokenizer, source, recipe.data, recipe.fit)
    if jax.process_index() == 0:
        save_codes(codes, workdir / FILE)
    return codes


def open_batches(recipe: Recipe, inputs: Inputs, bad: BadRecords, start: int) -> Iterator[Batch]:
    """This process's part of every batch from step `start` on."""
    shared: dict[str, Any] = {
        "batch_size": recipe.batch_size,
        "tokenize": _tokenize(recipe, inputs),
        "seed": recipe.seed,
        "start": start * recipe.batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "image_size": recipe.data.image_size,
        "threads": recipe.data.threads,
        "bad": bad,
        "block": recipe.data.shuffle_block,
    }
    if inputs.store is not None:
        return make_embedding_batches(inputs.store, source=inputs.source, **shared)
    assert inputs.source is not None
    return make_batches(inputs.source, **shared)


def make_objective(
    recipe: Recipe, inputs: Inputs, mesh: Mesh | None = None
) -> tuple[Objective, Any]:
    """The stage's objective over batches that are split over `mesh`, and the frozen arrays it
    takes."""
    if isinstance(recipe, CLIPRecipe):
        return make_clip_objective(recipe, mesh), {}
    if isinstance(recipe, UpsamplerRecipe):
        return make_upsampler_objective(recipe), {}
    if isinstance(recipe, NoisedCLIPRecipe):
        return make_noised_clip_objective(recipe, mesh), {}
    if isinstance(recipe, ClassifierRecipe):
        return make_classifier_objective(recipe), {}
    assert inputs.clip is not None and isinstance(inputs.clip.recipe, CLIPRecipe)
    assert inputs.tokenizer is not None
    clip_config, frozen = inputs.clip.recipe.model, inputs.clip.params
    empty = np.asarray(inputs.tokenizer([""]))[0]
    if isinstance(recipe, PriorRecipe):
        return make_prior_objective(recipe, clip_config, empty), frozen
    if isinstance(recipe, ARPriorRecipe):
        return make_ar_prior_objective(recipe, clip_config, empty), (frozen, inputs.codes)
    if isinstance(recipe, LinearPriorRecipe):
        return make_linear_prior_objective(recipe, clip_config), frozen
    if isinstance(recipe, OneStepPriorRecipe):
        return make_one_step_prior_objective(recipe, clip_config), frozen
    return make_decoder_objective(recipe, clip_config, empty), frozen


def _tokenize(recipe: Recipe, inputs: Inputs) -> Tokenize:
    """What makes `batch["tokens"]` of captions: tokens, a class, or nothing."""
    if isinstance(recipe, ClassifierRecipe):
        return make_labeler(recipe.classes)
    return inputs.tokenizer or (lambda captions: np.zeros((len(captions), 1), np.int32))


def _all_captions(source: Source, bad: BadRecords) -> Iterator[str]:
    """Of the records that can be read, evenly spaced if there are more than `CORPUS`."""
    count = min(len(source), CORPUS)
    for index in (place * len(source) // count for place in range(count)):
        try:
            yield from all_captions(read_record(source, index).captions)
        except BadImage as error:
            bad.add(error.name, error.reason, len(source))


def check_fits_clip(recipe: AnyPriorRecipe | DecoderRecipe, clip: Stage) -> None:
    """Widths and context of the frozen CLIP are those that the recipe names."""
    if not isinstance(clip.recipe, CLIPRecipe):
        raise UserError(f"{recipe.clip} is not a CLIP: name the run or folder of one in `clip`")
    have = clip.recipe.model
    pairs: list[tuple[str, int, int]] = []
    width = recipe.model.embedding_width
    if width is not None:
        pairs.append(("embedding_width", width, have.embedding_width))
    if isinstance(recipe, PriorRecipe | ARPriorRecipe | OneStepPriorRecipe):
        pairs.append(("text_width", recipe.model.text_width, have.text.width))
        pairs.append(("context_length", recipe.model.context_length, have.context_length))
    elif isinstance(recipe, DecoderRecipe):
        text = recipe.model.text
        if text is None:
            pairs.append(("clip_text_width", recipe.model.clip_text_width, have.text.width))
        else:
            pairs.append(("text.context_length", text.context_length, have.context_length))
            if clip.tokenizer is not None and text.vocab_size < clip.tokenizer.vocab_size:
                pairs.append(("text.vocab_size", text.vocab_size, clip.tokenizer.vocab_size))
    for name, given, needed in pairs:
        if given != needed:
            raise UserError(
                f"model.{name} is {given}, the CLIP in {recipe.clip} has {needed}: "
                f"pass --model.{name.replace('_', '-')} {needed}"
            )
