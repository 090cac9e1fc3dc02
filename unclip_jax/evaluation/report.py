"""The whole evaluation of a model on the emoji: which measurements are made, on what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip_jax.config import to_dict
from unclip_jax.data.images import save_png
from unclip_jax.errors import UserError
from unclip_jax.evaluation.decoder_scores import DecoderScores, measure_decoder
from unclip_jax.evaluation.encoders import Say
from unclip_jax.evaluation.pictures import Pictures, choose_prompts, find_prompts, load_pictures
from unclip_jax.evaluation.prior_scores import PriorScores, measure_prior
from unclip_jax.evaluation.retrieval import RetrievalScores, measure_retrieval
from unclip_jax.evaluation.table import to_markdown
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe

RETRIEVAL_SPLITS = ("test_cells", "test", "train")


@dataclass(frozen=True)
class Evaluation:
    """All that was measured, as it goes into evaluation.json."""

    model: str
    """Name of the model or of its folder; empty for stages that were named one by one."""
    clip_id: str
    steps: dict[str, int]
    """Optimiser steps of each stage."""
    seed: int
    retrieval: tuple[RetrievalScores, ...]
    prior: PriorScores | None
    decoder: DecoderScores | None


@dataclass(frozen=True)
class Material:
    """The true pictures that a model is measured on."""

    splits: dict[str, Pictures]
    """test_cells, test and as many pictures of train as test_cells has."""
    known: Pictures | None
    """The pictures that prompts are from, at the decoder's size; None without a decoder."""
    prompts: tuple[int, ...] = ()
    """Rows of `known`."""
    known_split: str = "train"
    """Of `known`."""


def load_material(
    unclip: UnCLIP, num_prompts: int, prompts: Sequence[str], split: str = "train"
) -> Material:
    """The pictures for `evaluate`, drawn into the cache first where they are not there.

    Args:
        num_prompts: prompts for the decoder, chosen evenly, unless `prompts` names them.
        split: of the emoji, that the prompts are from: of train the pictures that the decoder was
            trained on, of test_cells other styles of those things, of test all pictures.
    Raises:
        UserError: the decoder was not trained on the emoji, or a prompt is not in the split.
    """
    known, rows = None, []
    if "prior" in unclip.stages and "decoder" in unclip.stages:
        recipe = unclip.stage("decoder").recipe
        assert isinstance(recipe, DecoderRecipe)
        if recipe.data.source != "emoji":
            raise UserError(
                f"the decoder was trained on {recipe.data.source!r}, and the prompts are emoji: "
                "name --clip and --prior only"
            )
        concepts = () if split == "test" else recipe.data.concepts
        known = load_pictures(split, recipe.model.unet.image_size, concepts)
        facts = known.facts
        rows = find_prompts(facts, prompts) if prompts else choose_prompts(facts, num_prompts)
    assert isinstance(unclip.clip.recipe, CLIPRecipe)
    size = unclip.clip.recipe.model.image_size
    splits = {split: load_pictures(split, size) for split in ("test_cells", "test")}
    splits["train"] = load_pictures("train", size, limit=len(splits["test_cells"].facts))
    return Material(splits, known, tuple(rows), split)


def evaluate(
    unclip: UnCLIP,
    material: Material,
    *,
    seed: int,
    per_prompt: int,
    say: Say,
    judge: UnCLIP | None = None,
) -> tuple[Evaluation, dict[float, np.ndarray]]:
    """Everything that the stages at hand allow; the same numbers for the same seed.

    Args:
        per_prompt: pictures that the decoder draws for each prompt.
        say: told about the progress.
        judge: whose CLIP is asked about the decoder's pictures; None is the model's own.
    Returns:
        the numbers, and a grid of pictures for each guidance scale of the decoder.
    """
    retrieval = []
    for split in RETRIEVAL_SPLITS:
        pictures = material.splits[split]
        say(f"CLIP: {len(pictures.facts)} pictures of {split}")
        retrieval.append(measure_retrieval(unclip, split, pictures))
    prior = None
    if "prior" in unclip.stages:
        prior = measure_prior(unclip, "test_cells", material.splits["test_cells"], seed, say)
    decoder, grids = None, {}
    if material.known is not None:
        decoder, grids = measure_decoder(
            unclip,
            judge or unclip,
            material.known_split,
            material.known,
            material.prompts,
            seed,
            per_prompt,
            say,
        )
    result = Evaluation(
        model=Path(unclip.name).name,
        clip_id=unclip.clip.clip_id,
        steps={name: stage.step for name, stage in unclip.stages.items()},
        seed=seed,
        retrieval=tuple(retrieval),
        prior=prior,
        decoder=decoder,
    )
    return result, grids


def save_evaluation(out: Path, result: Evaluation, grids: dict[float, np.ndarray]) -> str:
    """evaluation.json, evaluation.md and a PNG for each grid; returns the text of evaluation.md.

    Raises:
        UserError: the folder cannot be written.
    """
    text = to_markdown(to_dict(result))
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = json.dumps(to_dict(result), indent=1, ensure_ascii=False) + "\n"
        (out / "evaluation.json").write_text(data, encoding="utf-8")
        (out / "evaluation.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    for guidance, grid in grids.items():
        save_png(out / f"samples_guidance_{guidance:g}.png", grid)
    return text
