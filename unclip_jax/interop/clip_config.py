"""A CLIP's config from Hugging Face's config.json and preprocessor_config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unclip_jax.errors import UserError
from unclip_jax.models.clip import OPENAI_MEAN, OPENAI_STD, CLIPConfig
from unclip_jax.models.layers import EPSILON, Activation
from unclip_jax.models.transformer import TransformerConfig

_ARGMAX = 2
"""Hugging Face's end of text in older configs: not an id there, it stands for the largest id."""
_HF_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
}


@dataclass(frozen=True)
class Fields:
    """An object of a foreign JSON file, whose fields are checked when they are read."""

    values: dict[str, Any]
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.values, dict):
            raise UserError(f"{self.where} is not an object with fields: restore the file")

    def under(self, name: str) -> Fields:
        """An object in it; no field is an empty object."""
        return Fields(self.values.get(name) or {}, f"{self.where}: {name}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or value < 0:
            raise self.unusable(name, value, "a whole number")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.unusable(name, value, "a number")
        return float(value)

    def side(self, name: str, default: int) -> int:
        """A side in pixels, which some write twice."""
        value = self.values.get(name, default)
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or value < 1:
            raise self.unusable(name, value, "one side of a square")
        return value

    def channels(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, list | tuple) or not all(
            isinstance(x, int | float) for x in value
        ):
            raise self.unusable(name, value, "three numbers")
        return tuple(float(x) for x in value)

    def unusable(self, name: str, value: Any, wanted: str) -> UserError:
        return UserError(f"{self.where}: {name} is {value!r} where {wanted} is needed")


def hf_config(
    config: dict[str, Any], preprocessor: dict[str, Any] | None, where: str
) -> CLIPConfig:
    """The config of a `CLIPModel` from its config.json and preprocessor_config.json.

    Raises:
        UserError: not a CLIP, or one that this package cannot compute.
    """
    fields = Fields(config, where)
    text, vision = _hf_part(fields, "text_config"), _hf_part(fields, "vision_config")
    width = fields.integer("projection_dim", 512)
    return _hf_towers(text, vision, width, preprocessor)


def hf_tower_config(
    text: dict[str, Any],
    vision: dict[str, Any] | None,
    preprocessor: dict[str, Any] | None,
    where: str,
    *,
    has_projection: bool = True,
) -> CLIPConfig:
    """The config of a `CLIPTextModel`, alone or beside a `CLIPVisionModelWithProjection`.

    Args:
        text, vision: their config.json.
        has_projection: the text encoder has one; else its width is the embedding's.
    Raises:
        UserError: as `hf_config`, or two embeddings of different widths.
    """
    fields = Fields(text, where)
    if "text_config" in text:  # a tower that was saved out of a whole CLIP
        fields = _hf_part(fields, "text_config")
    width = fields.integer("projection_dim" if has_projection else "hidden_size", 512)
    image = None
    if vision is not None:
        image = Fields(vision, f"{where}, image encoder")
        if "vision_config" in vision:
            image = _hf_part(image, "vision_config")
        if (other := image.integer("projection_dim", 512)) != width:
            raise UserError(
                f"{where}: the text embedding has width {width} and the image embedding {other}: "
                "give the two encoders of one CLIP"
            )
    return _hf_towers(fields, image, width, preprocessor)


def tower(
    width: int, depth: int, heads: int, hidden: int, activation: Activation, epsilon: float
) -> TransformerConfig:
    """A tower of these sizes; `hidden` is the width of its MLP."""
    if not (width and depth and heads):
        raise UserError(f"a tower of width {width}, depth {depth} and {heads} heads is no network")
    mlp_width = None if hidden == 4 * width else hidden
    return TransformerConfig(
        width, depth, heads, mlp_width=mlp_width, activation=activation, norm_epsilon=epsilon
    )


def _hf_part(fields: Fields, name: str) -> Fields:
    """A tower's fields. Where an older file has them twice, `*_config_dict` and defaults win."""
    values = fields.under(name).values
    older = fields.values.get(f"{name}_dict")
    return Fields(values if older is None else older, f"{fields.where}: {name}")


def _hf_towers(
    text: Fields, vision: Fields | None, width: int, preprocessor: dict[str, Any] | None
) -> CLIPConfig:
    pictures = Fields(preprocessor or {}, "preprocessor_config.json")
    text_epsilon = text.number("layer_norm_eps", EPSILON)
    epsilon = text_epsilon
    image_size, patch_size = CLIPConfig.image_size, CLIPConfig.patch_size
    if vision is not None:
        epsilon = vision.number("layer_norm_eps", EPSILON)
        image_size, patch_size = vision.side("image_size", 224), vision.side("patch_size", 32)
        if vision.integer("num_channels", 3) != 3:
            raise vision.unusable("num_channels", vision.values["num_channels"], "3")
    return CLIPConfig(
        embedding_width=width,
        image_size=image_size,
        patch_size=patch_size,
        vision=None if vision is None else _hf_tower(vision, (768, 3072, 12)),
        text=_hf_tower(text, (512, 2048, 8)),
        vocab_size=text.integer("vocab_size", 49408),
        context_length=text.integer("max_position_embeddings", 77),
        norm_epsilon=epsilon,
        text_norm_epsilon=None if text_epsilon == epsilon else text_epsilon,
        end_of_text=_hf_end_of_text(text),
        image_mean=pictures.channels("image_mean", OPENAI_MEAN),
        image_std=pictures.channels("image_std", OPENAI_STD),
    )


def _hf_tower(fields: Fields, defaults: tuple[int, int, int]) -> TransformerConfig:
    name = fields.values.get("hidden_act", "quick_gelu")
    if name not in _HF_ACTIVATIONS:
        known = ", ".join(_HF_ACTIVATIONS)
        raise fields.unusable("hidden_act", name, f"one of {known}")
    width, hidden, heads = defaults
    return tower(
        fields.integer("hidden_size", width),
        fields.integer("num_hidden_layers", 12),
        fields.integer("num_attention_heads", heads),
        fields.integer("intermediate_size", hidden),
        _HF_ACTIVATIONS[name],
        fields.number("layer_norm_eps", EPSILON),
    )


def _hf_end_of_text(fields: Fields) -> int | None:
    value = fields.values.get("eos_token_id", 49407)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if type(value) is not int or value < 0:
        raise fields.unusable("eos_token_id", value, "one id")
    return None if value == _ARGMAX else value
