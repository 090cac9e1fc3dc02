"""A model as a folder: which stages there are, which fit together, and how they are read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from unclip_jax.bounded import read_json
from unclip_jax.config import from_dict
from unclip_jax.errors import UserError, choose, nearest
from unclip_jax.files import find_like
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.weights import SHIPPED, Stage, load_stage, missing_model, shipped_model

STAGES: dict[str, type] = {
    "clip": CLIPRecipe,
    "prior": PriorRecipe,
    "ar_prior": ARPriorRecipe,
    "linear_prior": LinearPriorRecipe,
    "one_step_prior": OneStepPriorRecipe,
    "decoder": DecoderRecipe,
    "decoder_inpaint": DecoderRecipe,
    "noised_clip": NoisedCLIPRecipe,
    "classifier": ClassifierRecipe,
    "upsampler_256": UpsamplerRecipe,
    "upsampler_256_last": UpsamplerRecipe,
    "upsampler_256_inpaint": UpsamplerRecipe,
    "upsampler_1024": UpsamplerRecipe,
    "upsampler_1024_last": UpsamplerRecipe,
    "upsampler_1024_inpaint": UpsamplerRecipe,
}
"""What a model may consist of: the name of a stage's folder, and the recipe it was trained by."""
UPSAMPLERS = tuple(name for name, recipe in STAGES.items() if recipe is UpsamplerRecipe)
ALONE = ("noised_clip", "classifier", *UPSAMPLERS)
"""Stages that are not trained for a CLIP. The numbers stand for the first and the second upsampler
after a decoder of 64 x 64. One that ends in `_last` takes the last step of the other; `_inpaint`
was trained to see a known part of the picture, and is taken where there is one."""
INPAINTING = "_inpaint"


def check_stages(stages: dict[str, Stage]) -> None:
    """UserError unless every stage is of its kind and was trained for the same CLIP."""
    if "clip" not in stages:
        raise UserError("a model needs its clip stage: name its folder or run as clip")
    clip_id = stages["clip"].clip_id
    decoder = stages["decoder"].recipe if "decoder" in stages else None
    scale = decoder.model.unet.image_size / 64 if isinstance(decoder, DecoderRecipe) else 1
    for name, stage in stages.items():
        if name not in STAGES:
            raise UserError(f"stage {name!r} is unknown: {choose(name, STAGES)}")
        if not isinstance(stage.recipe, STAGES[name]):
            raise UserError(f"the {name} given is a {type(stage.recipe).__name__} stage")
        check_inpainting(name, stage)
        if isinstance(stage.recipe, UpsamplerRecipe):
            number = int(name.split("_")[1])
            if stage.recipe.data.image_size not in (number, number * scale):
                raise UserError(
                    f"the {name} given was trained for {stage.recipe.data.image_size} pixels"
                )
        elif name == "decoder_inpaint" and decoder is not None:
            _check_same_side(stage, decoder)
        if name not in ALONE and stage.clip_id != clip_id:
            raise UserError(
                f"the {name} was trained for CLIP {stage.clip_id}, not for this one "
                f"({clip_id}): load the stages of one model together"
            )


def check_inpainting(name: str, stage: Stage) -> None:
    """UserError unless the stage sees a known part of the picture just if its name says so."""
    is_trained = is_inpainting(stage.recipe)
    if is_trained != name.endswith(INPAINTING):
        own = name.removesuffix(INPAINTING) + INPAINTING * is_trained
        how = "was trained" if is_trained else "was not trained"
        raise UserError(f"the {name} given {how} for inpainting: name it as {own}")


def _check_same_side(stage: Stage, decoder: Any) -> None:
    sides = (stage.recipe.data.image_size, decoder.data.image_size)
    if sides[0] != sides[1]:
        raise UserError(
            f"the decoder_inpaint given draws {sides[0]} pixels and the decoder {sides[1]}: load "
            "stages of one model together"
        )


def is_inpainting(recipe: Any) -> bool:
    """Whether its network was trained to see a known part of the picture."""
    return getattr(getattr(recipe, "model", None), "is_inpainting", False)


def read_model(
    source: str | Path | dict[str, Any],
    *,
    only: Collection[str] | None = None,
    as_stored: bool = False,
) -> tuple[dict[str, Stage], SamplingConfig]:
    """The stages of a shipped model by name, of a folder with a folder a stage, or {stage: folder}.

    Args:
        only: of its stages those of these names; None is all.
        as_stored: see `load_stage`.
    Raises:
        UserError: nothing there, a stage's name that is unknown, or a file that cannot be read.
    """
    sampling = SamplingConfig()
    if isinstance(source, dict):
        _check_names(source)
        folders = {stage: Path(path) for stage, path in source.items()}
    else:
        root = _find_model(source)
        folders = {stage: root / stage for stage in STAGES if (root / stage).is_dir()}
        sampling = read_sampling(root)
    if "clip" not in folders:
        raise UserError(f"{source} has no clip stage: give a folder with clip/")
    if only is not None:
        _check_names(only)
        folders = {name: path for name, path in folders.items() if name in only}
    stages = {name: load_stage(path, as_stored=as_stored) for name, path in folders.items()}
    return stages, sampling


def _check_names(stages: Collection[str]) -> None:
    odd = sorted(set(stages) - set(STAGES))
    if odd:
        raise UserError(f"stage {odd[0]!r} is unknown: {choose(odd[0], STAGES)}")


def read_sampling(folder: Path) -> SamplingConfig:
    """The folder's sampling.json, or the defaults where it has none.

    Raises:
        UserError: the file cannot be read, or says what no sampler knows.
    """
    path = folder / "sampling.json"
    if not path.exists():
        return SamplingConfig()
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error
    return from_dict(SamplingConfig, data, "sampling.json: ")


def _find_model(source: str | Path) -> Path:
    """The folder of a shipped model, or the given one."""
    shipped = shipped_model(source)
    if shipped is not None and not shipped.is_dir():
        raise UserError(missing_model(str(source)))
    folder = shipped or Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"model {source} is neither a folder nor shipped: {_meant(folder)}give a folder with "
            f"clip/, prior/ and decoder/, or one of {', '.join(SHIPPED)}"
        )
    return folder


def _meant(folder: Path) -> str:
    near = nearest(str(folder), SHIPPED) or find_like(folder)
    return "" if near is None else f"did you mean {near}? Or "
