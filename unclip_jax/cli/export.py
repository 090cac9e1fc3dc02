"""unclip export --clip RUN --prior RUN --decoder RUN --out FOLDER: a model that others can load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unclip_jax.cli.overrides import parse
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole


@dataclass(frozen=True)
class ExportOptions:
    """The averaged weights of runs as safetensors with configs, a folder for each stage, and a
    model card; or, with --format, as the files of a PyTorch project."""

    model: str | None = None
    """A model folder, or a shipped model: all its stages, to be exported in another format."""
    format: Literal[
        "unclip",
        "hf_clip",
        "open_clip",
        "openai_clip",
        "karlo",
        "karlo_original",
        "dalle2_pytorch",
    ] = "unclip"
    """hf_clip: a folder for transformers' CLIPModel. open_clip: one for OpenCLIP. openai_clip: the
    state dict of OpenAI's code. karlo: diffusers' components. karlo_original: Karlo's own files.
    dalle2_pytorch: the .pth of a folder that `unclip convert` made of one. A stage that would
    compute something else there is refused by name."""
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
    decoder_inpaint: str | None = None
    """Run folder of the decoder that was trained for inpainting."""
    upsampler_256: str | None = None
    """Run folder of the upsampler to 256."""
    upsampler_1024: str | None = None
    """Run folder of the upsampler to 1024."""
    upsampler_256_inpaint: str | None = None
    """Run folder of the upsampler to 256 that was trained for inpainting."""
    upsampler_1024_inpaint: str | None = None
    """Run folder of the upsampler to 1024 that was trained for inpainting."""
    noised_clip: str | None = None
    """Run folder of the CLIP that knows noise."""
    classifier: str | None = None
    """Run folder of the classifier."""
    out: str = "model"
    """Folder of the model; stages that it has already are replaced."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Type of the stored weights; None is bfloat16, and float32 in another --format."""
    prior_steps: int | None = None
    """Default denoising steps of the prior. What is not given stays as the folder has it; a new one
    gets the package's defaults."""
    prior_guidance: float | None = None
    """Default guidance scale of the prior."""
    steps: int | None = None
    """Default denoising steps of the decoder."""
    guidance: float | None = None
    """Default guidance scale of the decoder."""
    upsample_steps: int | None = None
    """Default denoising steps of each upsampler."""
    batch_size: int | None = None
    """Default pictures a device and call."""


def main(arguments: Sequence[str]) -> int:
    """Writes the folder; returns the exit code."""
    options = parse(ExportOptions, arguments, default=None, program="unclip export")
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.cli.export_foreign import export_dalle2_file, export_foreign
    from unclip_jax.config import to_dict
    from unclip_jax.generation.model_card import model_card
    from unclip_jax.generation.model_folder import (
        ALONE,
        INPAINTING,
        STAGES,
        is_inpainting,
        read_model,
        read_sampling,
    )
    from unclip_jax.training.recipe import stage_of
    from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
    from unclip_jax.training.weights import load_stage, save_stage

    if options.format == "dalle2_pytorch":
        export_dalle2_file(options.model, Path(options.out))
        return 0
    named = {name: path for name in STAGES if (path := getattr(options, name, None)) is not None}
    if options.model is not None:
        if options.format == "unclip" or named:
            raise UserError(
                "--model is for a whole model in another --format: leave the other stages out"
            )
        stages, _ = read_model(options.model)
        export_foreign(options.format, stages, Path(options.out), options.dtype)
        return 0
    if not named:
        raise UserError("there is nothing to export: name a run with --clip, --prior or --decoder")
    stages = {name: load_stage(path) for name, path in named.items()}
    for name, stage in stages.items():
        kind = stage_of(stage.recipe)
        if isinstance(stage.recipe, UpsamplerRecipe):
            kind = f"upsampler_{stage.recipe.data.image_size}"
        kind += INPAINTING * is_inpainting(stage.recipe)
        if kind != name:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {named[name]} holds a {kind}: name it as that")
    ids = {name: stage.clip_id for name, stage in stages.items() if name not in ALONE}
    if len(set(ids.values())) > 1:
        raise UserError(f"these stages were trained for different CLIPs: {ids}")
    out = Path(options.out)
    if options.format != "unclip":
        export_foreign(options.format, stages, out, options.dtype)
        return 0
    for name, stage in stages.items():
        recipe: Any = replace(stage.recipe, init_from=None)  # a path of this machine, as is clip
        if hasattr(recipe, "clip"):
            recipe = replace(recipe, clip=out.name)
        save_stage(replace(stage, recipe=recipe), out / name, options.dtype or "bfloat16")
        size = (out / name / "model.safetensors").stat().st_size / 1e6
        print(f"{name}: step {stage.step}, {size:.1f} MB in {out / name}")
    sampling = _sampling(options, read_sampling(out), stages)
    text = json.dumps(to_dict(sampling), indent=1) + "\n"
    write_whole(out / "sampling.json", text.encode())
    there = {name: load_stage(out / name) for name in STAGES if (out / name).is_dir()}
    card = model_card(out.name, there)
    write_whole(out / "README.md", card.encode())
    return 0


def _sampling(options: ExportOptions, old: Any, stages: dict[str, Any]) -> Any:
    """`old` with what the command line and the new stages say on top."""

    def changed(config: Any, **values: Any) -> Any:
        return replace(config, **{name: v for name, v in values.items() if v is not None})

    variance = None
    if "prior" in stages:
        variance = "trained" if stages["prior"].score_norms is None else "analytic"
    upsampling = {"num_steps": options.upsample_steps}
    return changed(
        old,
        prior=changed(
            old.prior,
            variance=variance,
            num_steps=options.prior_steps,
            guidance_scale=options.prior_guidance,
        ),
        decoder=changed(old.decoder, num_steps=options.steps, guidance_scale=options.guidance),
        upsampler_256=changed(old.upsampler_256, **upsampling),
        upsampler_1024=changed(old.upsampler_1024, **upsampling),
        batch_size=options.batch_size,
    )
