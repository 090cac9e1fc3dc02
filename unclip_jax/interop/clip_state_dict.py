"""OpenAI's and OpenCLIP's CLIPs: one state dict layout, and the configs that belong to it.

A state dict tells every size but the number of heads and the activation. A wrong activation loads
without a complaint and computes something else, so neither is ever guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from unclip_jax.errors import UserError
from unclip_jax.interop.clip_config import Fields, tower
from unclip_jax.interop.tensors import Tensors
from unclip_jax.models.clip import OPENAI_MEAN, OPENAI_STD, CLIPConfig
from unclip_jax.models.layers import EPSILON, Activation
from unclip_jax.models.transformer import TransformerConfig

OPENAI_HEAD_WIDTH = 64
ARCHIVE_SCALARS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold beside the weights."""


def _presets() -> dict[str, CLIPConfig]:
    b = TransformerConfig(768, 12, 12), TransformerConfig(512, 12, 8)
    l = TransformerConfig(1024, 24, 16), TransformerConfig(768, 12, 12)
    h = TransformerConfig(1280, 32, 16), TransformerConfig(1024, 24, 16)
    g = TransformerConfig(1408, 40, 16, mlp_width=6144), TransformerConfig(1024, 24, 16)
    big_g = TransformerConfig(1664, 48, 16, mlp_width=8192), TransformerConfig(1280, 32, 20)
    exact = {
        "ViT-B-32": CLIPConfig(512, 224, 32, *b),
        "ViT-B-16": CLIPConfig(512, 224, 16, *b),
        "ViT-L-14": CLIPConfig(768, 224, 14, *l),
        "ViT-L-14-336": CLIPConfig(768, 336, 14, *l),
        "ViT-H-14": CLIPConfig(1024, 224, 14, *h),
        "ViT-g-14": CLIPConfig(1024, 224, 14, *g),
        "ViT-bigG-14": CLIPConfig(1280, 224, 14, *big_g),
    }
    return exact | {f"{name}-quickgelu": _quick(config) for name, config in exact.items()}


def _quick(config: CLIPConfig) -> CLIPConfig:
    vision, text = (
        replace(part, activation="quick_gelu") for part in (config.image_tower, config.text)
    )
    return replace(config, vision=vision, text=text)


PRESETS = _presets()
"""OpenCLIP's models by OpenCLIP's names. OpenAI's weights are of the '-quickgelu' ones."""

# What OpenCLIP's towers are without the field, and the only value that is CLIP's network.
_OPEN_CLIP_PLAIN: dict[str, tuple[Any, ...]] = {
    "pos_embed_type": ("learnable",),
    "block_type": ("default",),
    "proj_type": ("linear",),
    "pool_type": ("tok", "argmax", "eos"),
}
_OPEN_CLIP_READ = {
    *("layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size"),
    *("context_length", "vocab_size", "hf_tokenizer_name", "eos_id"),
}
# Of training, of other outputs, or of switches that are refused by themselves.
_OPEN_CLIP_IDLE = {
    *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "pad_id"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop"),
    *("timm_drop_path", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}


@dataclass(frozen=True)
class StateDictOptions:
    """What a bare state dict does not tell: a named model, or heads and activation."""

    model: str | None = None
    """A name of `PRESETS`, such as 'ViT-H-14'; or 'openai', for heads of 64 and quick GELU."""
    vision_heads: int | None = None
    text_heads: int | None = None
    activation: Activation | None = None

    def __post_init__(self) -> None:
        if self.model not in (None, "openai", *PRESETS):
            raise UserError(
                f"--clip-model {self.model!r} is not a CLIP that this package knows: "
                f"give openai, {', '.join(PRESETS)}"
            )
        heads = [n for n in (self.vision_heads, self.text_heads) if n is not None]
        if any(n < 1 for n in heads):
            raise UserError(f"--vision-heads or --text-heads is {min(heads)}: give 1 or more")
        if self.model in PRESETS and (heads or self.activation):
            raise UserError(
                f"--clip-model {self.model!r} has its own heads and activation: give it or these"
            )


def open_clip_config(config: dict[str, Any], where: str) -> CLIPConfig:
    """The config of an OpenCLIP model from open_clip_config.json, or from its `model_cfg` alone.

    Raises:
        UserError: a network that is not CLIP's ViT and causal text encoder; names the field.
    """
    whole = Fields(config, where)
    model = whole.under("model_cfg") if "model_cfg" in config else whole
    vision, text = model.under("vision_cfg"), model.under("text_cfg")
    if "multimodal_cfg" in model.values:
        raise _refused(where, "multimodal_cfg", "a CoCa")
    if vision.values.get("timm_model_name"):
        raise _refused(vision.where, "timm_model_name", "an image encoder of timm (as SigLIP's)")
    if text.values.get("hf_model_name"):
        raise _refused(text.where, "hf_model_name", "a text encoder of transformers")
    if isinstance(vision.values.get("layers"), list):
        raise _refused(vision.where, "layers", "a ResNet")
    for part in (vision, text):
        _check_plain(part)
    activation: Activation = "quick_gelu" if model.values.get("quick_gelu") else "gelu"
    width, head_width = vision.integer("width", 768), vision.integer("head_width", 64)
    vision_epsilon, text_epsilon = (
        part.under("norm_kwargs").number("eps", EPSILON) for part in (vision, text)
    )
    bias, pictures = model.values.get("init_logit_bias"), whole.under("preprocess_cfg")
    return CLIPConfig(
        embedding_width=model.integer("embed_dim"),
        image_size=vision.side("image_size", 224),
        patch_size=vision.side("patch_size", 16),
        vision=tower(
            width,
            vision.integer("layers", 12),
            width // max(head_width, 1),
            int(width * vision.number("mlp_ratio", 4.0)),
            activation,
            vision_epsilon,
        ),
        text=tower(
            text.integer("width", 512),
            text.integer("layers", 12),
            text.integer("heads", 8),
            int(text.integer("width", 512) * text.number("mlp_ratio", 4.0)),
            activation,
            text_epsilon,
        ),
        vocab_size=text.integer("vocab_size", 49408),
        context_length=text.integer("context_length", 77),
        norm_epsilon=vision_epsilon,
        text_norm_epsilon=None if text_epsilon == vision_epsilon else text_epsilon,
        end_of_text=text.integer("eos_id", 2) if text.values.get("pool_type") == "eos" else None,
        image_mean=pictures.channels("mean", OPENAI_MEAN),
        image_std=pictures.channels("std", OPENAI_STD),
        initial_logit_scale=model.number("init_logit_scale", CLIPConfig.initial_logit_scale),
        has_logit_bias=bias is not None,
        initial_logit_bias=CLIPConfig.initial_logit_bias if bias is None else float(bias),
    )


def has_clip_tokenizer(config: dict[str, Any]) -> bool:
    """Whether an OpenCLIP config leaves the tokenizer at OpenCLIP's default, which is CLIP's."""
    text = Fields(config.get("model_cfg", config), "open_clip_config.json").under("text_cfg")
    return not text.values.get("hf_tokenizer_name")


def state_dict_config(tensors: Tensors, options: StateDictOptions, where: str) -> CLIPConfig:
    """The config of a state dict in OpenAI's names, from shapes and `options`.

    OpenAI's own archives need none: they hold their resolution and context beside the weights.

    Raises:
        UserError: heads and activation are not known, or the names are another network's.
    """
    is_archive = set(ARCHIVE_SCALARS) <= set(tensors)
    _check_state(tensors, where)
    bias = "logit_bias" in tensors
    if options.model not in (None, "openai"):
        return replace(PRESETS[options.model], has_logit_bias=bias)  # type: ignore[index]
    text = "text." if "text.positional_embedding" in tensors else ""
    try:
        vision_width, _, _, patch = tensors["visual.conv1.weight"].shape
        positions, _ = tensors["visual.positional_embedding"].shape
        context, text_width = tensors[f"{text}positional_embedding"].shape
        _, embedding = tensors[f"{text}text_projection"].shape
        vocab, _ = tensors[f"{text}token_embedding.weight"].shape
    except (KeyError, ValueError) as error:
        raise UserError(f"{where} is no CLIP with a ViT ({error}): name another file") from error
    heads, activation = (options.vision_heads, options.text_heads), options.activation
    if is_archive or options.model == "openai":
        rule = (vision_width // OPENAI_HEAD_WIDTH, text_width // OPENAI_HEAD_WIDTH)
        heads = tuple(given or known for given, known in zip(heads, rule, strict=True))
        activation = activation or "quick_gelu"
    vision_heads, text_heads = heads
    if not vision_heads or not text_heads or activation is None:
        raise UserError(
            f"{where} does not say how many heads its layers have and which GELU: name the model "
            f"with --clip-model (openai, {', '.join(PRESETS)}), or give --vision-heads, "
            "--text-heads and --activation (gelu or quick_gelu)"
        )
    return CLIPConfig(
        embedding_width=embedding,
        image_size=math.isqrt(positions - 1) * patch,
        patch_size=patch,
        vision=_state_tower(tensors, "visual.", vision_width, vision_heads, activation),
        text=_state_tower(tensors, text, text_width, text_heads, activation),
        vocab_size=vocab,
        context_length=context,
        has_logit_bias=bias,
    )


def _state_tower(
    tensors: Tensors, prefix: str, width: int, heads: int, activation: Activation
) -> TransformerConfig:
    blocks = f"{prefix}transformer.resblocks."
    depth = len({n.removeprefix(blocks).split(".")[0] for n in tensors if n.startswith(blocks)})
    hidden = tensors.get(f"{blocks}0.mlp.c_fc.weight")
    return tower(width, depth, heads, hidden.shape[0] if hidden else 4 * width, activation, EPSILON)


def _check_state(tensors: Tensors, where: str) -> None:
    others = {
        "visual.layer1.": "a ResNet image encoder",
        "visual.trunk.": "an image encoder of timm (as SigLIP's)",
        "text.transformer.embeddings.": "a text encoder of transformers",
        "text_decoder.": "a CoCa",
        "text_model.": "a Hugging Face model: give the folder with its config.json",
        "vision_model.": "a Hugging Face model: give the folder with its config.json",
    }
    for prefix, what in others.items():
        if any(name.startswith(prefix) for name in tensors):
            raise UserError(f"{where} holds {prefix}*, {what}; this package has CLIP's ViTs")


def _check_plain(fields: Fields) -> None:
    """UserError where a field of OpenCLIP asks for another network."""
    for name, value in fields.values.items():
        if name in _OPEN_CLIP_READ | _OPEN_CLIP_IDLE or not value:
            continue
        is_epsilon = name == "norm_kwargs" and set(value) <= {"eps"}
        if not is_epsilon and value not in _OPEN_CLIP_PLAIN.get(name, ()):
            raise _refused(fields.where, name, f"{value!r}")


def _refused(where: str, name: str, what: str) -> UserError:
    return UserError(f"{where}: {name} is {what}; this package has CLIP's ViT and text encoder")
