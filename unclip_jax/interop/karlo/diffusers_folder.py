"""A folder in diffusers' layout: Karlo's, its image variations', or a Kandinsky prior's.

diffusers itself no longer opens the whole folder: its UnCLIPPipeline is deprecated. Here it is read
as safetensors and JSON, component by component.

Kandinsky's decoders take CLIP's embedding of an input of zeros where no picture is meant; they are
not read here, and the prior is guided by the empty caption, as Karlo's.
"""

from __future__ import annotations

from pathlib import Path

from unclip_jax.config import DataConfig, to_dict
from unclip_jax.errors import UserError
from unclip_jax.interop.clip import import_clip
from unclip_jax.interop.clip_stage import clip_config, clip_stage
from unclip_jax.interop.foreign_stage import ForeignModel, ForeignStage
from unclip_jax.interop.karlo.configs import (
    Coefficients,
    decoder_config,
    diffusion_config,
    prior_config,
    unet_config,
    upsampler_recipe,
)
from unclip_jax.interop.karlo.keys import STATISTICS, decoder_keys, prior_keys, upsampler_keys
from unclip_jax.interop.karlo.sampling import ORIGINAL_PRIOR_LIMIT, karlo_sampling
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensors, with_prefix
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe

_SCHEDULERS = {
    "prior": ("prior_scheduler", "scheduler"),
    "decoder": ("decoder_scheduler",),
    "super_res": ("super_res_scheduler",),
}
"""Where a component's scheduler may be; a Kandinsky prior has but one."""
_PREPROCESSORS = ("feature_extractor", "image_processor")
"""What Karlo and Kandinsky call it."""


def open_diffusers_folder(
    folder: Path, coefficients: Coefficients = "original", tokenizer: Path | None = None
) -> ForeignModel:
    """What the folder has of a prior, a decoder and two upsamplers, and its CLIP.

    Args:
        tokenizer: folder of the vocabulary; None takes the one that is there, or OpenAI's.

    Raises:
        UserError: no text encoder, none of the stages, or a config that is not unCLIP's.
    """
    if not (folder / "text_encoder").is_dir():
        raise UserError(f"{folder} has no text_encoder/: name a whole folder of diffusers' layout")
    image_encoder = folder / "image_encoder"
    clip = clip_stage(
        import_clip(
            folder / "text_encoder",
            image_encoder=image_encoder if image_encoder.is_dir() else None,
            tokenizer=tokenizer or folder / "tokenizer",
            preprocessor=_first(folder, _PREPROCESSORS),
        ),
        unit_embeddings=False,
    )
    stages: dict[str, ForeignStage] = {}
    limit = ORIGINAL_PRIOR_LIMIT
    try:
        text_width = clip_config(clip).text.width
        if (folder / "prior").is_dir():
            stages["prior"], found = _prior(folder, coefficients, text_width)
            limit = limit if coefficients == "original" else found
        if (folder / "decoder").is_dir() and (folder / "text_proj").is_dir():
            stages["decoder"] = _decoder(folder, coefficients, text_width)
        for name, component in (("", "first"), ("_last", "last")):
            if (folder / f"super_res_{component}").is_dir():
                stage = _upsampler(folder, f"super_res_{component}", coefficients)
                stages[f"upsampler_256{name}"] = stage
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: a config.json lacks or misspells a field ({error}): restore the file"
        ) from error
    if not stages:
        raise UserError(f"{folder} has neither prior/ nor decoder/ nor super_res_first/")
    return ForeignModel(clip, stages, to_dict(karlo_sampling(limit)))


def _prior(folder: Path, coefficients: Coefficients, text_width: int) -> tuple[ForeignStage, float]:
    model = prior_config(folder / "prior", text_width)
    diffusion, limit = diffusion_config(_scheduler(folder, "prior"), coefficients)
    tensors = open_file(folder / "prior").tensors
    missing = [name for name in STATISTICS if name not in tensors]
    if missing:
        raise UserError(f"{folder / 'prior'} lacks {missing[0]}, CLIP's statistics: restore it")
    mean, deviation = (tensors[name].read().reshape(-1).astype("float32") for name in STATISTICS)
    stage = ForeignStage(
        PriorRecipe(clip="", model=model, diffusion=diffusion),
        prior_keys(model, "diffusers"),
        {name: tensor for name, tensor in tensors.items() if name not in STATISTICS},
        str(folder / "prior"),
        ("causal_attention_mask",),
        EmbeddingStatistics(mean, deviation),
    )
    return stage, limit


def _decoder(folder: Path, coefficients: Coefficients, text_width: int) -> ForeignStage:
    model = decoder_config(folder / "decoder", folder / "text_proj", text_width)
    diffusion, _ = diffusion_config(_scheduler(folder, "decoder"), coefficients)
    data = DataConfig(image_size=model.unet.image_size)
    return ForeignStage(
        DecoderRecipe(clip="", model=model, diffusion=diffusion, data=data),
        decoder_keys(model, "diffusers"),
        _components(folder, ("decoder", "text_proj")),
        f"{folder / 'decoder'} with text_proj",
    )


def _upsampler(folder: Path, component: str, coefficients: Coefficients) -> ForeignStage:
    unet = unet_config(folder / component, None)
    diffusion, _ = diffusion_config(_scheduler(folder, "super_res"), coefficients)
    recipe = upsampler_recipe(unet, diffusion)
    keys = upsampler_keys(unet, "diffusers")
    tensors = open_file(folder / component).tensors
    return ForeignStage(recipe, keys, tensors, f"{folder / component}")


def _components(folder: Path, names: tuple[str, ...]) -> Tensors:
    tensors: Tensors = {}
    for name in names:
        tensors |= with_prefix(open_file(folder / name).tensors, f"{name}.")
    return tensors


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these that is there, else the first."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _scheduler(folder: Path, stage: str) -> Path:
    path = _first(folder, tuple(f"{name}/scheduler_config.json" for name in _SCHEDULERS[stage]))
    if not path.exists():
        raise UserError(f"{path} is missing: restore the file")
    return path
