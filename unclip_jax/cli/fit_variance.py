"""unclip fit-variance PRIOR: what the diffusion prior's analytic variances are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unclip_jax.cli.overrides import parse
from unclip_jax.config import DataConfig
from unclip_jax.errors import UserError


@dataclass(frozen=True)
class VarianceOptions:
    """Measures a diffusion prior's score norms on held-out pictures (Bao et al. 2022).

    Writes score_norms.safetensors into the prior's folder. `unclip export` then makes analytic
    variances the model's default; other steps of the same prior need another measurement.
    """

    prior: str
    """The diffusion prior: a run folder or an exported folder."""
    clip: str | None = None
    """The CLIP it was trained for; None is the one that its recipe names."""
    rows: int = 256
    """Pictures that are measured, a fixed random choice; each costs a call of the network a
    timestep. The error of a norm is about sqrt(2 / (rows * width)) of its distance to 1: 0.8 % at
    width 128."""
    batch_size: int = 64
    """Pictures at a time; the estimate does not depend on it."""
    data: DataConfig = DataConfig(split="test")
    """The pictures, or their stored embeddings; give the --data options of the recipe and a split
    that the prior was not trained on."""

    def __post_init__(self) -> None:
        for name in ("rows", "batch_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is {getattr(self, name)}: give 1 or more")


def main(arguments: Sequence[str]) -> int:
    """Writes the file; returns the exit code."""
    options = parse(VarianceOptions, arguments, default=None, program="unclip fit-variance")
    folder = Path(options.prior).expanduser()
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.training.encoded_pairs import first_pairs, make_pair_reader, open_pairs
    from unclip_jax.training.recipes.clip import CLIPRecipe
    from unclip_jax.training.recipes.prior import PriorRecipe
    from unclip_jax.training.score_norms import FILE, measure_score_norms, save_score_norms
    from unclip_jax.training.weights import load_clip, load_stage

    stage = load_stage(folder)
    if not isinstance(stage.recipe, PriorRecipe):
        raise UserError(f"{folder} is not a diffusion prior: name the run or folder of one")
    name = options.clip or stage.recipe.clip
    try:
        clip = load_clip(name)
    except UserError as error:
        if options.clip is not None:
            raise
        raise UserError(
            f"the CLIP of {folder} is missing ({error}): name it with --clip"
        ) from error
    if not isinstance(clip.recipe, CLIPRecipe):
        raise UserError(f"{name} is not a CLIP: name the run or folder of one with --clip")
    if clip.clip_id != stage.clip_id:
        raise UserError(
            f"{folder} was trained for CLIP {stage.clip_id}, {name} holds {clip.clip_id}: "
            "name its own with --clip"
        )
    assert clip.tokenizer is not None
    source = open_pairs(options.data, clip.clip_id, clip.tokenizer)
    count = min(options.rows, len(source))
    read = make_pair_reader(
        clip.recipe.model,
        clip.params,
        clip.tokenizer,
        rows=min(options.batch_size, options.rows),
        shuffle=True,
    )
    gamma = measure_score_norms(
        stage.recipe,
        stage.params,
        first_pairs(read(source, options.data), count),
        on_rows=lambda rows: print(f"{rows:,} of {count:,} pictures", flush=True),
    )
    save_score_norms(gamma, folder / FILE, stage.step)
    print(f"{folder / FILE}: {len(gamma):,} timesteps, {count:,} pictures, step {stage.step}")
    return 0
