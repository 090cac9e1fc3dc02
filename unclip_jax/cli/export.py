"""unclip export --clip RUN --prior RUN --decoder RUN --out FOLDER: a model that others can load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unclip_jax.cli.overrides import parse
from unclip_jax.errors import UserError


@dataclass(frozen=True)
class ExportOptions:
    """The averaged weights of runs as safetensors with configs, a folder for each stage."""

    clip: str | None = None
    """Run folder of the CLIP."""
    prior: str | None = None
    """Run folder of the diffusion prior; score norms in it (`unclip fit-variance`) make analytic
    variances the default."""
    ar_prior: str | None = None
    """Run folder of the autoregressive prior."""
    linear_prior: str | None = None
    """Run folder of the linear prior, or the folder that `unclip fit-linear` wrote."""
    one_step_prior: str | None = None
    """Run folder of the one-step prior."""
    decoder: str | None = None
    """Run folder of the decoder."""
    upsampler_256: str | None = None
    """Run folder of the upsampler to 256."""
    upsampler_1024: str | None = None
    """Run folder of the upsampler to 1024."""
    noised_clip: str | None = None
    """Run folder of the CLIP that knows noise."""
    classifier: str | None = None
    """Run folder of the classifier."""
    out: str = "model"
    """Folder of the model; stages that it has already are replaced."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the stored weights."""
    prior_steps: int = 64
    """Default denoising steps of the prior."""
    prior_guidance: float = 1.0
    """Default guidance scale of the prior."""
    steps: int = 50
    """Default denoising steps of the decoder (DDIM)."""
    guidance: float = 3.0
    """Default guidance scale of the decoder."""
    batch_size: int = 8
    """Default pictures a device and call."""


def main(arguments: Sequence[str]) -> int:
    """Writes the folder; returns the exit code."""
    options = parse(ExportOptions, arguments, default=None, program="unclip export")
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.config import to_dict
    from unclip_jax.diffusion.samplers import SamplerConfig
    from unclip_jax.generation.model_folder import ALONE, STAGES
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.training.recipe import stage_of
    from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
    from unclip_jax.training.score_norms import FILE as SCORE_NORMS
    from unclip_jax.training.weights import load_stage, save_stage

    named = {name: path for name in STAGES if (path := getattr(options, name)) is not None}
    if not named:
        raise UserError("there is nothing to export: name a run with --clip, --prior or --decoder")
    stages = {name: load_stage(path) for name, path in named.items()}
    for name, stage in stages.items():
        kind = stage_of(stage.recipe)
        if isinstance(stage.recipe, UpsamplerRecipe):
            kind = f"upsampler_{stage.recipe.data.image_size}"
        if kind != name:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {named[name]} holds a {kind}: name it as that")
    ids = {name: stage.clip_id for name, stage in stages.items() if name not in ALONE}
    if len(set(ids.values())) > 1:
        raise UserError(f"these stages were trained for different CLIPs: {ids}")
    out = Path(options.out)
    for name, stage in stages.items():
        recipe: Any = stage.recipe
        if hasattr(recipe, "clip"):  # a path of this machine
            recipe = replace(recipe, clip=out.name)
        save_stage(replace(stage, recipe=recipe), out / name, options.dtype)
        size = (out / name / "model.safetensors").stat().st_size / 1e6
        print(f"{name}: step {stage.step}, {size:.1f} MB in {out / name}")
    default = SamplingConfig()
    sampling = SamplingConfig(
        prior=SamplerConfig(
            method=default.prior.method,
            # Also those of a prior that was exported into this folder before.
            variance="analytic" if (out / "prior" / SCORE_NORMS).is_file() else "trained",
            num_steps=options.prior_steps,
            thresholding="none",
            guidance_scale=options.prior_guidance,
        ),
        decoder=SamplerConfig(
            method="ddim", num_steps=options.steps, guidance_scale=options.guidance
        ),
        batch_size=options.batch_size,
    )
    text = json.dumps(to_dict(sampling), indent=1) + "\n"
    (out / "sampling.json").write_text(text, encoding="utf-8")
    return 0
