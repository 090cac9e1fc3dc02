"""Our configs as diffusers' config files, for the networks that diffusers can compute.

The reverse of `configs.py`. A field that diffusers' component does not have is refused by name: a
folder that loads there and computes something else would be worse than none.
"""

from __future__ import annotations

from typing import Any

from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.layers import EPSILON
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.training.recipes.run import DiffusionConfig

Misfit = tuple[bool, str, str]
"""Whether a field does not fit, the field with its value, and what would fit."""


def refuse_misfits(stage: str, misfits: list[Misfit]) -> None:
    """UserError with the first field that does not fit."""
    for is_misfit, field, fits in misfits:
        if is_misfit:
            raise UserError(
                f"{stage} cannot be exported in Karlo's layout: {field}, and there {fits}; leave "
                "the stage out, or train one that fits"
            )


def check_prior(stage: str, model: PriorConfig) -> None:
    """UserError unless PriorTransformer and Karlo's own prior compute it."""
    tower = model.transformer
    width = tower.mlp_width
    refuse_misfits(
        stage,
        [
            (
                width not in (None, 4 * tower.width),
                f"model.transformer.mlp_width is {width}",
                "it is four times the width",
            ),
            (
                tower.activation != "gelu",
                f"model.transformer.activation is {tower.activation}",
                "it is gelu",
            ),
            (
                tower.norm_epsilon != EPSILON,
                f"model.transformer.norm_epsilon is {tower.norm_epsilon}",
                f"it is {EPSILON}",
            ),
        ],
    )


def check_decoder(stage: str, model: DecoderConfig) -> None:
    """UserError unless Karlo's decoder computes it."""
    refuse_misfits(
        stage,
        [
            (
                model.text is not None,
                "model.text is a text encoder of its own",
                "the decoder reads CLIP's states (text None)",
            ),
            (
                not model.masks_padding,
                "model.masks_padding is False",
                "padding is always masked",
            ),
            (
                not model.unet.has_middle_attention,
                "model.unet.has_middle_attention is False",
                "the middle attends",
            ),
        ],
    )
    _check_unet(stage, model.unet)


def check_upsampler(stage: str, model: UpsamplerConfig) -> None:
    """UserError unless Karlo's super-resolution network computes it."""
    refuse_misfits(
        stage,
        [
            (
                model.has_augmentation,
                "model.has_augmentation is True",
                "the network is not told of any noise in the small picture",
            )
        ],
    )
    _check_unet(stage, model.unet)


def prior_component(stage: str, model: PriorConfig) -> dict[str, Any]:
    """PriorTransformer's config.json."""
    check_prior(stage, model)
    _check_text_width(stage, "model.text_width", model.text_width, model.embedding_width)
    tower = model.transformer
    return {
        "_class_name": "PriorTransformer",
        "num_attention_heads": tower.heads,
        "attention_head_dim": tower.width // tower.heads,
        "num_layers": tower.depth,
        "embedding_dim": model.embedding_width,
        "num_embeddings": model.context_length,
        "additional_embeddings": 4,
        "dropout": tower.dropout,
        "time_embed_act_fn": "silu",
        "norm_in_type": None,
        "embedding_proj_norm_type": None,
        "encoder_hid_proj_type": "linear",
        "added_emb_type": "prd",
        "time_embed_dim": None,
        "embedding_proj_dim": None,
        "clip_embed_dim": None,
    }


def text_proj_component(stage: str, model: DecoderConfig) -> dict[str, Any]:
    """UnCLIPTextProjModel's config.json."""
    width = model.embedding_width
    assert width is not None
    _check_text_width(stage, "model.clip_text_width", model.clip_text_width, width)
    return {
        "_class_name": "UnCLIPTextProjModel",
        "clip_extra_context_tokens": model.num_embedding_tokens,
        "clip_embeddings_dim": width,
        "time_embed_dim": model.unet.time_width,
        "cross_attention_dim": model.unet.context_width,
    }


def decoder_component(stage: str, model: DecoderConfig) -> dict[str, Any]:
    """UNet2DConditionModel's config.json."""
    check_decoder(stage, model)
    unet, levels = model.unet, range(len(model.unet.channel_mult))
    widths = [unet.channels * mult for mult in unet.channel_mult]
    names = ["SimpleCrossAttn" if unet.attends(level) else "Resnet" for level in levels]
    down = {"SimpleCrossAttn": "DownBlock2D", "Resnet": "DownsampleBlock2D"}
    up = {"SimpleCrossAttn": "UpBlock2D", "Resnet": "UpsampleBlock2D"}
    attending = [width for level, width in enumerate(widths) if unet.attends(level)]
    head_dims = [width // unet.num_heads(width) for width in [*attending, widths[-1]]]
    # diffusers takes a list of widths too, and reads it backwards on the way up.
    is_uneven = len(set(head_dims)) > 1
    field = f"model.unet.heads is {unet.heads}, which are {head_dims} channels wide"
    refuse_misfits(stage, [(is_uneven, field, "heads are of one width")])
    return {
        "_class_name": "UNet2DConditionModel",
        **_unet_fields(unet),
        "layers_per_block": unet.depth[0] if len(unet.depth) == 1 else list(unet.depth),
        "down_block_types": [name + down[name] for name in names],
        "up_block_types": [name + up[name] for name in reversed(names)],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "attention_head_dim": head_dims[0],
        "cross_attention_dim": unet.context_width,
        "class_embed_type": "identity",
    }


def super_res_component(stage: str, model: UpsamplerConfig) -> dict[str, Any]:
    """UNet2DModel's config.json; how the small picture is resized is not in it."""
    check_upsampler(stage, model)
    unet = model.unet
    depths, levels = set(unet.depth), len(unet.channel_mult)
    refuse_misfits(
        stage,
        [
            (
                len(depths) > 1,
                f"model.unet.depth is {unet.depth}",
                "every level of a UNet2DModel has the same",
            )
        ],
    )
    return {
        "_class_name": "UNet2DModel",
        **_unet_fields(unet),
        "layers_per_block": unet.depth[0],
        "down_block_types": ["ResnetDownsampleBlock2D"] * levels,
        "up_block_types": ["ResnetUpsampleBlock2D"] * levels,
        "mid_block_type": "UNetMidBlock2D",
        "add_attention": False,
    }


def scheduler_component(
    stage: str, diffusion: DiffusionConfig, limit: float | None
) -> dict[str, Any]:
    """UnCLIPScheduler's config.

    Args:
        limit: where the prediction of x_0 is clipped; None does not clip.
    """
    predictions = {"eps": "epsilon", "x0": "sample"}
    variances = {"fixed_small": "fixed_small_log", "learned_range": "learned_range"}
    refuse_misfits(
        stage,
        [
            (
                diffusion.schedule != "cosine",
                f"diffusion.schedule is {diffusion.schedule}",
                "UnCLIPScheduler has the cosine one alone",
            ),
            (
                diffusion.prediction not in predictions,
                f"diffusion.prediction is {diffusion.prediction}",
                "UnCLIPScheduler knows eps and x0",
            ),
            (
                diffusion.variance not in variances,
                f"diffusion.variance is {diffusion.variance}",
                "UnCLIPScheduler knows fixed_small and learned_range",
            ),
            (
                diffusion.zero_terminal_snr,
                "diffusion.zero_terminal_snr is True",
                "the last step keeps some signal",
            ),
        ],
    )
    return {
        "_class_name": "UnCLIPScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "num_train_timesteps": diffusion.num_timesteps,
        "prediction_type": predictions[diffusion.prediction],
        "variance_type": variances[diffusion.variance],
        "clip_sample": limit is not None,
        "clip_sample_range": 1.0 if limit is None else limit,
    }


def image_encoder_component(config: CLIPConfig) -> dict[str, Any]:
    """CLIPVisionModelWithProjection's config.json."""
    tower = config.image_tower
    inner, around = tower.norm_epsilon, config.norm_epsilon
    field = f"model.vision.norm_epsilon is {inner} and model.norm_epsilon {around}"
    refuse_misfits("clip", [(inner != around, field, "they are one")])
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.norm_epsilon,
        "projection_dim": config.embedding_width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "attention_dropout": 0.0,
    }


def feature_extractor_component(config: CLIPConfig) -> dict[str, Any]:
    """CLIPImageProcessor's preprocessor_config.json."""
    size = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def _unet_fields(unet: UNetConfig) -> dict[str, Any]:
    return {
        "sample_size": unet.image_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": [unet.channels * mult for mult in unet.channel_mult],
        "resnet_time_scale_shift": "scale_shift" if unet.time_norm == "scale_shift" else "default",
        "norm_num_groups": unet.groups,
        "norm_eps": EPSILON,
        "act_fn": "silu",
        "dropout": unet.dropout,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def _check_unet(stage: str, unet: UNetConfig) -> None:
    first = unet.channels * unet.channel_mult[0]
    refuse_misfits(
        stage,
        [
            (
                unet.patch_size != 1,
                f"model.unet.patch_size is {unet.patch_size}",
                "pixels are not gathered into patches",
            ),
            (
                unet.sinusoids != first,
                f"the timestep has {unet.sinusoids} sinusoids and the first level {first} channels",
                "these numbers are one",
            ),
        ],
    )


def _check_text_width(stage: str, field: str, width: int, embedding_width: int) -> None:
    refuse_misfits(
        stage,
        [
            (
                width != embedding_width,
                f"{field} is {width} and embedding_width {embedding_width}",
                "diffusers has one width for CLIP's states and embeddings",
            )
        ],
    )
