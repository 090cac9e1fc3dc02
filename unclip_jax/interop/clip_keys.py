"""Key maps of CLIP: OpenAI's names, which OpenCLIP shares, and Hugging Face's.

OpenAI packs queries, keys and values as [Q | K | V], as we do, and multiplies by its projections
from the right; Hugging Face has three Linears, and stores the projections the other way round.
"""

from __future__ import annotations

from collections.abc import Callable

from unclip_jax.interop.key_map import (
    Entry,
    KeyMap,
    conv,
    dense,
    joined,
    norm,
    same,
    stacked,
    under,
)
from unclip_jax.interop.layouts import DENSE
from unclip_jax.models.clip import CLIPConfig

OPENAI_IGNORED = (r"input_resolution|context_length|vocab_size", r"(text\.)?attn_mask")
"""Of OpenAI's archives, and a buffer that older files hold."""
HF_IGNORED = (r"(text_model\.|vision_model\.)?embeddings\.position_ids",)
"""A buffer that older files hold."""


def openai_key_map(config: CLIPConfig, text_prefix: str = "") -> KeyMap:
    """The state dict of OpenAI's code and of OpenCLIP's.

    Args:
        text_prefix: 'text.' in OpenCLIP's models with `custom_text`.
    """
    vision = [
        *conv("patch_embedding", "conv1", bias=False),
        *same("class_embedding", "class_embedding"),
        *same("positional_embedding", "positional_embedding"),
        *norm("norm_in", "ln_pre"),
        *_blocks(config.image_tower.depth, "transformer.resblocks.", _openai_block),
        *norm("norm_out", "ln_post"),
        *same("projection/kernel", "proj"),
    ]
    text = [
        *same("token_embedding/embedding", "token_embedding.weight"),
        *same("positional_embedding", "positional_embedding"),
        *_blocks(config.text.depth, "transformer.resblocks.", _openai_block),
        *norm("norm_out", "ln_final"),
        *same("projection/kernel", "text_projection"),
    ]
    return [
        *under(vision, target="vision/", source="visual."),
        *under(text, target="text/", source=text_prefix),
        *_logits(config),
    ]


def hf_key_map(config: CLIPConfig) -> KeyMap:
    """`CLIPModel`. The towers with a projection that Hugging Face saves alone are parts of it."""
    text = [
        *same("token_embedding/embedding", "embeddings.token_embedding.weight"),
        *same("positional_embedding", "embeddings.position_embedding.weight"),
        *_blocks(config.text.depth, "encoder.layers.", _hf_block),
        *norm("norm_out", "final_layer_norm"),
    ]
    return [
        *(_hf_vision(config.vision.depth) if config.vision else []),
        *under(text, target="text/", source="text_model."),
        *same("text/projection/kernel", "text_projection.weight", DENSE),
        *_logits(config),
    ]


def _hf_vision(depth: int) -> KeyMap:
    vision = [
        *conv("patch_embedding", "embeddings.patch_embedding", bias=False),
        *same("class_embedding", "embeddings.class_embedding"),
        *same("positional_embedding", "embeddings.position_embedding.weight"),
        *norm("norm_in", "pre_layrnorm"),  # their spelling
        *_blocks(depth, "encoder.layers.", _hf_block),
        *norm("norm_out", "post_layernorm"),
    ]
    return [
        *under(vision, target="vision/", source="vision_model."),
        *same("vision/projection/kernel", "visual_projection.weight", DENSE),
    ]


def _blocks(depth: int, source: str, block: Callable[[], KeyMap]) -> KeyMap:
    target = "transformer/blocks/"
    return stacked(depth, lambda i: under(block(), target=target, source=f"{source}{i}."))


def _openai_block() -> KeyMap:
    return [
        *norm("attention_norm", "ln_1"),
        Entry("qkv/kernel", ("attn.in_proj_weight",), DENSE),
        Entry("qkv/bias", ("attn.in_proj_bias",)),
        *dense("attention_out", "attn.out_proj"),
        *norm("mlp_norm", "ln_2"),
        *dense("mlp_in", "mlp.c_fc"),
        *dense("mlp_out", "mlp.c_proj"),
    ]


def _hf_block() -> KeyMap:
    return [
        *norm("attention_norm", "layer_norm1"),
        *joined("qkv", (f"self_attn.{part}_proj" for part in "qkv")),
        *dense("attention_out", "self_attn.out_proj"),
        *norm("mlp_norm", "layer_norm2"),
        *dense("mlp_in", "mlp.fc1"),
        *dense("mlp_out", "mlp.fc2"),
    ]


def _logits(config: CLIPConfig) -> KeyMap:
    return [
        *same("logit_scale", "logit_scale"),
        *(same("logit_bias", "logit_bias") if config.has_logit_bias else []),
    ]
