"""Stages of ours as Karlo: a folder of diffusers' components, or files like Karlo's own.

What was imported comes back bit for bit. A stage that was trained here is exported where exact
algebra makes Karlo's network of it:

- A prior and a decoder that scale embeddings by s get s in the kernels that read them. Such a prior
  says clip_mean 0 and clip_std 1 / s, and its scheduler does not clip.
- A null embedding of zero is a learned one that is zero.

A model whose CLIP has `unit_embeddings` keeps meaning embeddings of unit norm: transformers returns
them raw, so they must be divided by their norms before they enter the exported prior and decoder.
All else is refused by name, before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unclip_jax.config import Dtype
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.interop.clip_export import export_hf_clip
from unclip_jax.interop.clip_keys import hf_key_map
from unclip_jax.interop.clip_stage import clip_config
from unclip_jax.interop.karlo import export_configs as configs
from unclip_jax.interop.karlo.keys import STATISTICS, decoder_keys, prior_keys, upsampler_keys
from unclip_jax.interop.safetensors_file import write_safetensors
from unclip_jax.interop.tensors import Tensors, from_arrays, read_all, with_prefix, without_prefix
from unclip_jax.interop.tokenizer_files import write_tokenizer
from unclip_jax.interop.torch_archive import write_torch_archive
from unclip_jax.interop.transfer import export_tensors
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.weights import Stage

STAGES = {
    "prior": PriorRecipe,
    "decoder": DecoderRecipe,
    "upsampler_256": UpsamplerRecipe,
    "upsampler_256_last": UpsamplerRecipe,
}
"""What Karlo has, besides CLIP."""
PRIOR_FILE = "prior-ckpt-step=01000000-of-01000000.ckpt"
DECODER_FILE = "decoder-ckpt-step=01000000-of-01000000.ckpt"
UPSAMPLER_FILE = "improved-sr-ckpt-step=1.2M.ckpt"
STATISTICS_FILE = "ViT-L-14_stats.th"
WHITENED_LIMIT = 5.0
"""Where diffusers' config of Karlo clips the prior's prediction, in deviations."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = {
    "decoder": ["diffusers", "UNet2DConditionModel"],
    "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "prior": ["diffusers", "PriorTransformer"],
    "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_first": ["diffusers", "UNet2DModel"],
    "super_res_last": ["diffusers", "UNet2DModel"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
"""Library and class of every component."""
Write = Callable[[Path], None]


def export_karlo_folder(
    stages: dict[str, Stage],
    folder: Path,
    dtype: Dtype = "float32",
    prior_limit: float = WHITENED_LIMIT,
) -> list[str]:
    """Write a folder in diffusers' layout, whose components load with `from_pretrained`.

    Args:
        stages: by the names of a model folder; any of `STAGES`, and `clip`.
        folder: new or empty.
        dtype: of the prior, decoder and upsamplers; CLIP and its statistics stay float32.
        prior_limit: where the scheduler clips the prediction of a prior in whitened space.
    Returns:
        Names of the components.
    Raises:
        UserError: a stage that Karlo's networks do not compute, or a folder with other files.
    """
    _check_last(stages)
    components: dict[str, Write] = {}
    for name, stage in stages.items():
        components |= _components(name, stage, dtype, prior_limit)
    if not components:
        raise UserError("no stages are given: name at least one to export")
    _prepare(folder)
    for name, write in components.items():
        (folder / name).mkdir()
        write(folder / name)
    names = sorted(components)
    _write_json(
        folder / "model_index.json",
        {"_class_name": "UnCLIPPipeline"} | {name: _INDEX[name] for name in names},
    )
    return names


def export_karlo_original(stages: dict[str, Stage], folder: Path) -> list[str]:
    """Write files like Karlo's own, float32.

    CLIP is left out: it is OpenAI's file there, which `clip_export` writes. An upsampler without a
    network for the last step is both networks. Heads and groups are not in such files.

    Returns:
        Names of the files.
    Raises:
        UserError: as `export_karlo_folder`.
    """
    _check_last(stages)
    files: dict[str, Any] = {}
    for name, stage in stages.items():
        _check_kind(name, stage)
        recipe: Any = stage.recipe
        if name == "prior":
            configs.check_prior(name, recipe.model)
            params, statistics = folded_prior(stage)
            tensors = export_tensors(prior_keys(recipe.model, "karlo"), params)
            files[PRIOR_FILE] = {"state_dict": with_prefix(tensors, "model.")}
            pair = from_arrays({"mean": statistics.mean, "deviation": statistics.deviation})
            files[STATISTICS_FILE] = tuple(pair.values())
        elif name == "decoder":
            configs.check_decoder(name, recipe.model)
            tensors = export_tensors(decoder_keys(recipe.model, "karlo"), folded_decoder(stage))
            files[DECODER_FILE] = {"state_dict": with_prefix(tensors, "model.")}
    if "upsampler_256" in stages:
        files[UPSAMPLER_FILE] = {"state_dict": _original_upsamplers(stages)}
    if not files:
        raise UserError("no prior, decoder or upsampler is given: name at least one to export")
    _prepare(folder)
    for name, tree in files.items():
        write_torch_archive(folder / name, tree)
    return list(files)


def folded_prior(stage: Stage) -> tuple[Any, EmbeddingStatistics]:
    """A prior that scales nothing, and the statistics that undo its scale.

    W (s e) = (s W) e for the text embedding; the network's image embedding z = s e becomes
    e = z / s + 0 as clip_std and clip_mean say.
    """
    recipe: Any = stage.recipe
    model, params = recipe.model, stage.params
    if model.is_whitened:
        if stage.statistics is None:
            raise UserError(
                "the prior works in whitened space and has no statistics: load its folder"
            )
        return params, stage.statistics
    name, width = "text_embedding_projection", model.embedding_width
    params = {**params, name: _scaled(params[name], model.scale)}
    deviation = np.full(width, 1 / model.scale, np.float32)
    return params, EmbeddingStatistics(np.zeros(width, np.float32), deviation)


def folded_decoder(stage: Stage) -> Any:
    """Parameters of a decoder that scales nothing and has a learned null embedding.

    W (s e) = (s W) e; where the embedding is dropped, (s W) (n / s) = W n.
    """
    recipe: Any = stage.recipe
    model, params = recipe.model, dict(stage.params)
    if model.null_embedding == "zero":
        params["null_embedding"] = np.zeros(model.embedding_width, np.float32)
    if model.scale == 1:
        return params
    for name in ("embedding_to_time", "embedding_to_tokens"):
        params[name] = _scaled(params[name], model.scale)
    null = np.asarray(params["null_embedding"], np.float64) / model.scale
    return {**params, "null_embedding": null.astype(np.float32)}


def _components(name: str, stage: Stage, dtype: Dtype, limit: float) -> dict[str, Write]:
    """What one stage is in diffusers, checked and not written yet."""
    _check_kind(name, stage)
    recipe: Any = stage.recipe
    if name == "clip":
        return _clip(stage)
    if name == "prior":
        config = configs.prior_component(name, recipe.model)
        own = limit if recipe.model.is_whitened else None
        scheduler = configs.scheduler_component(name, recipe.diffusion, own)
        params, statistics = folded_prior(stage)
        tensors = export_tensors(prior_keys(recipe.model, "diffusers"), params)
        pair = (statistics.mean[None], statistics.deviation[None])
        kept = from_arrays(dict(zip(STATISTICS, pair, strict=True)))
        return {
            "prior": _network(config, tensors, dtype, kept),
            "prior_scheduler": _scheduler(scheduler),
        }
    scheduler = configs.scheduler_component(name, recipe.diffusion, 1.0)
    if name == "decoder":
        config = configs.decoder_component(name, recipe.model)
        projection = configs.text_proj_component(name, recipe.model)
        tensors = export_tensors(decoder_keys(recipe.model, "diffusers"), folded_decoder(stage))
        projections = without_prefix(tensors, "text_proj.")
        return {
            "decoder": _network(config, without_prefix(tensors, "decoder."), dtype),
            "text_proj": _network(projection, projections, dtype),
            "decoder_scheduler": _scheduler(scheduler),
        }
    config = configs.super_res_component(name, recipe.model)
    tensors = export_tensors(upsampler_keys(recipe.model.unet, "diffusers"), stage.params)
    if name == "upsampler_256_last":
        return {"super_res_last": _network(config, tensors, dtype)}
    return {
        "super_res_first": _network(config, tensors, dtype),
        "super_res_scheduler": _scheduler(scheduler),
    }


def _clip(stage: Stage) -> dict[str, Write]:
    config, tokenizer = clip_config(stage), stage.tokenizer
    text_only = replace(config, vision=None)

    def text(folder: Path) -> None:
        export_hf_clip(text_only, stage.params, None, folder, drop_logit_bias=True)

    components: dict[str, Write] = {"text_encoder": text}
    if tokenizer is not None:
        components["tokenizer"] = lambda folder: write_tokenizer(tokenizer, folder)
    if config.vision is None:
        return components
    vision = configs.image_encoder_component(config)
    tensors = export_tensors(hf_key_map(config), stage.params)
    own = {name: t for name, t in tensors.items() if name.startswith("vis")}

    def image(folder: Path) -> None:
        _write_json(folder / "config.json", vision)
        _save(own, folder / "model.safetensors", "float32")

    def features(folder: Path) -> None:
        _write_json(
            folder / "preprocessor_config.json", configs.feature_extractor_component(config)
        )

    return {**components, "image_encoder": image, "feature_extractor": features}


def _original_upsamplers(stages: dict[str, Stage]) -> Tensors:
    tensors: Tensors = {}
    names = ("upsampler_256", "upsampler_256_last")
    last = names["upsampler_256_last" in stages]
    for part, name in (("first_steps", names[0]), ("last_step", last)):
        stage, own = stages[name], _model(stages[name])
        configs.check_upsampler(name, own)
        found = export_tensors(upsampler_keys(own.unet, "karlo"), stage.params)
        tensors |= with_prefix(found, f"model_{part}.")
    return tensors


def _network(
    config: dict[str, Any], tensors: Tensors, dtype: Dtype, kept: Tensors | None = None
) -> Write:
    """Writes config.json and weights; `kept` stays float32, whatever the rest is stored in."""

    def write(folder: Path) -> None:
        _write_json(folder / "config.json", config)
        _save(tensors, folder / _WEIGHTS, dtype, kept)

    return write


def _scheduler(config: dict[str, Any]) -> Write:
    return lambda folder: _write_json(folder / "scheduler_config.json", config)


def _save(tensors: Tensors, path: Path, dtype: Dtype, kept: Tensors | None = None) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    kept, metadata = kept or {}, {"format": "pt"}  # older versions of diffusers ask for it
    if kept and dtype == "bfloat16":  # two dtypes in one file
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(t.read(), kind) for name, t in tensors.items()}
        arrays |= {name: np.ascontiguousarray(tensor.read()) for name, tensor in kept.items()}
        save_file(arrays, path, metadata)
        return
    tensors = tensors | kept
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_safetensors(path, shapes, read_all(tensors), kind, metadata=metadata)


def _scaled(dense: Any, scale: float) -> dict[str, Any]:
    kernel = np.asarray(dense["kernel"], np.float64) * scale
    return {**dense, "kernel": kernel.astype(np.float32)}


def _model(stage: Stage) -> Any:
    recipe: Any = stage.recipe
    return recipe.model


def _check_last(stages: dict[str, Stage]) -> None:
    """The network of the last step is the first one's with other weights, and takes its steps."""
    if "upsampler_256_last" not in stages:
        return
    if "upsampler_256" not in stages:
        raise UserError("upsampler_256_last is for the last step alone: give upsampler_256 with it")
    first, last = _model(stages["upsampler_256"]), _model(stages["upsampler_256_last"])
    if first != last:
        raise UserError(
            "upsampler_256_last is another network than upsampler_256: leave it out, or give the "
            "one that belongs to it"
        )


def _check_kind(name: str, stage: Stage) -> None:
    kinds = {**STAGES, "clip": CLIPRecipe}
    if name not in kinds or not isinstance(stage.recipe, kinds[name]):
        raise UserError(
            f"{name} ({type(stage.recipe).__name__}) has no place in Karlo's layout: export "
            f"{', '.join(kinds)}"
        )


def _prepare(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: export into a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())
