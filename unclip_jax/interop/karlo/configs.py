"""diffusers' configs of Karlo's and Kandinsky's components, as ours.

Every value that changes what a component computes is read or checked; one that this package does
not compute is refused by name.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import Any, Literal

from unclip_jax import bounded
from unclip_jax.config import DataConfig
from unclip_jax.errors import UserError
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe

Coefficients = Literal["original", "diffusers"]
"""Whose sampler is followed: Karlo's own, in float64, which clips the prior's prediction at 10; or
diffusers', in float32, which clips it where the scheduler's config says (5)."""
_ATTENDS = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D")
_PLAIN = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
_UNET_FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "only_cross_attention": False,
    "cross_attention_norm": None,
    "addition_embed_type": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "timestep_post_act": None,
    "time_embedding_act_fn": None,
    "num_attention_heads": None,
}
_PRIOR_FIXED = {
    "added_emb_type": "prd",
    "additional_embeddings": 4,
    "encoder_hid_proj_type": "linear",
    "norm_in_type": None,
    "embedding_proj_norm_type": None,
    "time_embed_act_fn": "silu",
    "clip_embed_dim": None,
    "embedding_proj_dim": None,
    "time_embed_dim": None,
}


_COUNTS = (
    *("num_attention_heads", "attention_head_dim", "embedding_dim", "num_embeddings", "num_layers"),
    *("block_out_channels", "layers_per_block", "norm_num_groups", "sample_size"),
    *("in_channels", "out_channels", "cross_attention_dim", "num_train_timesteps"),
    *("time_embed_dim", "clip_embeddings_dim", "clip_extra_context_tokens"),
)
"""Fields that are whole numbers from 1 on, or lists of them, wherever they stand."""


def read_json(path: Path) -> dict[str, Any]:
    """A config file; raises UserError."""
    try:
        data = bounded.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold an object: restore the file")
    for name in _COUNTS:
        value = data.get(name)
        values = value if isinstance(value, list) and value else [value]
        if value is not None and not all(type(n) is int and n > 0 for n in values):
            raise UserError(f"{path}: {name} is {value!r}, and not 1 or more: restore the file")
    return data


def prior_config(folder: Path, text_width: int | None = None) -> PriorConfig:
    """PriorTransformer's config.json.

    Args:
        text_width: of CLIP's text states; the embedding's width if None, as in Karlo.
    """
    data = _checked(folder, _PRIOR_FIXED)
    heads, head_width = data["num_attention_heads"], data["attention_head_dim"]
    return PriorConfig(
        embedding_width=data["embedding_dim"],
        text_width=text_width or data["embedding_dim"],
        context_length=data["num_embeddings"],
        transformer=TransformerConfig(
            width=heads * head_width, depth=data["num_layers"], heads=heads
        ),
        embedding_scale=1.0,
        is_whitened=True,
    )


def decoder_config(unet_folder: Path, projection_folder: Path, text_width: int) -> DecoderConfig:
    """UNet2DConditionModel's and UnCLIPTextProjModel's config.json."""
    projection = read_json(projection_folder / "config.json")
    unet = unet_config(unet_folder, projection["cross_attention_dim"])
    kind = read_json(unet_folder / "config.json").get("class_embed_type")
    if kind != "identity":  # anything else would not add text_proj's vector to the time embedding
        raise UserError(
            f"{unet_folder / 'config.json'}: class_embed_type is {kind!r}, and an unCLIP decoder's "
            "is 'identity': this is not an unCLIP component"
        )
    if projection["time_embed_dim"] != unet.time_width:
        raise UserError(
            f"{projection_folder / 'config.json'} has time_embed_dim "
            f"{projection['time_embed_dim']}, the decoder needs {unet.time_width}: take both from "
            "one model"
        )
    return DecoderConfig(
        unet=unet,
        text=None,
        clip_text_width=text_width,
        embedding_width=projection["clip_embeddings_dim"],
        num_embedding_tokens=projection["clip_extra_context_tokens"],
        embedding_scale=1.0,
        null_embedding="learned",
        masks_padding=True,
    )


def unet_config(folder: Path, context_width: int | None) -> UNetConfig:
    """UNet2DConditionModel's or UNet2DModel's config.json, of the blocks that unCLIP uses."""
    data = _checked(folder, _UNET_FIXED)
    path, channels = folder / "config.json", data["block_out_channels"]
    # The sinusoids of the timestep are as many as the first level's channels.
    unit = channels[0] if not any(width % channels[0] for width in channels) else gcd(*channels)
    down, up = data["down_block_types"], data["up_block_types"]
    attends = [kind in _ATTENDS for kind in down]
    if not all(kind in _ATTENDS + _PLAIN for kind in [*down, *up]) or attends[::-1] != [
        kind in _ATTENDS for kind in up
    ]:
        raise UserError(f"{path}: blocks {[*down, *up]} are not those of an unCLIP network")
    norms = {"scale_shift": "scale_shift", "default": "additive"}
    time_norm = norms.get(data.get("resnet_time_scale_shift", "default"))
    if time_norm is None:
        raise UserError(
            f"{path}: resnet_time_scale_shift {data['resnet_time_scale_shift']!r} is not "
            "supported: scale_shift and default are"
        )
    has_context = context_width is not None
    if has_context and data.get("cross_attention_dim") != context_width:
        raise UserError(
            f"{path}: cross_attention_dim is {data.get('cross_attention_dim')}, text_proj has "
            f"{context_width}: take both from one model"
        )
    size, layers = data["sample_size"], data["layers_per_block"]
    return UNetConfig(
        image_size=size,
        in_channels=data["in_channels"],
        out_channels=data["out_channels"],
        channels=unit,
        channel_mult=tuple(width // unit for width in channels),
        time_channels=None if unit == channels[0] else channels[0],
        depth=tuple(layers) if isinstance(layers, list) else (layers,),
        attention_resolutions=tuple(size // 2**i for i, does in enumerate(attends) if does),
        has_middle_attention=_has_middle_attention(data),
        head_channels=_head_channels(path, data),
        context_width=context_width,
        time_norm="scale_shift" if time_norm == "scale_shift" else "additive",
        groups=data["norm_num_groups"],
        dropout=data.get("dropout", 0.0),
    )


def diffusion_config(path: Path, coefficients: Coefficients) -> tuple[DiffusionConfig, float]:
    """UnCLIPScheduler's scheduler_config.json: the process, and where its prediction is clipped."""
    data = read_json(path)
    schedules: dict[str, Literal["cosine"]] = {"squaredcos_cap_v2": "cosine"}
    predictions: dict[str, Literal["eps", "x0"]] = {"epsilon": "eps", "sample": "x0"}
    variances: dict[str, Literal["fixed_small", "learned_range"]] = {
        "fixed_small_log": "fixed_small",
        "learned_range": "learned_range",
    }
    schedule = data.get("beta_schedule", "squaredcos_cap_v2")
    prediction = data.get("prediction_type", "epsilon")
    variance = data.get("variance_type", "fixed_small_log")
    if schedule not in schedules or prediction not in predictions or variance not in variances:
        raise UserError(
            f"{path}: {schedule}, {prediction}, {variance} is not a process of UnCLIPScheduler"
        )
    process = DiffusionConfig(
        schedule=schedules[schedule],
        num_timesteps=data.get("num_train_timesteps", 1000),
        prediction=predictions[prediction],
        variance=variances[variance],
        tables="float64" if coefficients == "original" else "float32",
    )
    limit = data.get("clip_sample_range", 1.0) if data.get("clip_sample", True) else float("inf")
    return process, limit or float("inf")


def upsampler_recipe(unet: UNetConfig, diffusion: DiffusionConfig) -> UpsamplerRecipe:
    """A recipe around one of the super-resolution networks."""
    size, multiple = unet.image_size, 2 ** (len(unet.channel_mult) - 1)
    return UpsamplerRecipe(
        model=UpsamplerConfig(unet, resize="cubic"),
        diffusion=diffusion,
        data=DataConfig(image_size=size),
        crop_fraction=1.0 if (size // 4) % max(4, multiple) else 0.25,
    )


def _head_channels(path: Path, data: dict[str, Any]) -> int:
    """One for all levels: of a list, diffusers' way up takes the wrong ends."""
    given = data.get("attention_head_dim") or 8
    widths = set(given) if isinstance(given, list) else {given}
    if len(widths) != 1:
        raise UserError(
            f"{path}: attention_head_dim {given} differs from level to level, which is not "
            "supported: heads are of one width"
        )
    return widths.pop()


def _has_middle_attention(data: dict[str, Any]) -> bool:
    middle = data.get("mid_block_type", "UNetMidBlock2D")
    if middle == "UNetMidBlock2D":
        return bool(data.get("add_attention", True))
    return middle == "UNetMidBlock2DSimpleCrossAttn"


def _checked(folder: Path, fixed: dict[str, Any]) -> dict[str, Any]:
    path = folder / "config.json"
    data = read_json(path)
    for name, value in fixed.items():
        if data.get(name, value) != value:
            raise UserError(
                f"{path}: {name} is {data[name]!r}, and only {value!r} is supported: this is not "
                "an unCLIP component"
            )
    return data
