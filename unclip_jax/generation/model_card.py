"""A model folder's README.md: what its stages are, written from their recipes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from unclip_jax.training.recipe import stage_of
from unclip_jax.training.weights import Stage

_OPEN = (
    "Licence, intended use and limits: the author's to fill in. The pictures that the stages were "
    "trained on decide what they can draw and what they must not be used for."
)


def model_card(name: str, stages: dict[str, Stage]) -> str:
    """Markdown with a row for each stage: parameters, steps, batch, data, process.

    What no recipe knows (licence, intended use, what the data show) is left for the author, with a
    line that says so.
    """
    lines = [
        f"# {name}",
        "",
        "DALL-E 2 (unCLIP) stages of unclip_jax: safetensors with their recipes as JSON.",
        "",
        "| stage | parameters | steps | batch | data | process |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(stage_name, stage) for stage_name, stage in stages.items()),
        "",
        f'Load: `UnCLIP.load("{name}")`, or `sample.py text "..." --model {name}`.',
        "",
        _OPEN,
        "",
    ]
    return "\n".join(lines)


def _row(name: str, stage: Stage) -> str:
    recipe: Any = stage.recipe
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(stage.params))
    process, diffusion = stage_of(stage.recipe), getattr(recipe, "diffusion", None)
    if diffusion is not None:
        process += f", {diffusion.schedule}, predicts {diffusion.prediction}"
    size = f"{recipe.data.source}, {recipe.data.image_size} pixels"
    if not stage.step:  # imported: the recipe is no record of a training
        return f"| {name} | {count:,} | imported | | | {process} |"
    return f"| {name} | {count:,} | {stage.step:,} | {recipe.batch_size} | {size} | {process} |"
