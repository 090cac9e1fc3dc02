"""Karlo's networks by the names of its own files and of diffusers' folders.

Its own files pack queries, keys and values head by head; diffusers splits them. The projections
around the decoder's U-Net are a component of their own in diffusers (`text_proj`), and part of the
decoder's file in Karlo.
"""

from __future__ import annotations

from typing import Literal

from unclip_jax.interop.key_map import KeyMap, dense, joined, norm, packed, same, stacked, under
from unclip_jax.interop.layouts import Squeezed
from unclip_jax.interop.unet_keys import adm_unet_keys, diffusers_unet_keys
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import UNetConfig

Naming = Literal["diffusers", "karlo"]

STATISTICS = ("clip_mean", "clip_std")
"""In diffusers' prior, parameters; in Karlo a file of their own."""


def prior_keys(config: PriorConfig, naming: Naming) -> KeyMap:
    """PriorTransformer, or Karlo's prior without its prefix `model.` → params of `DiffusionPrior`.

    CLIP's statistics are not parameters here.
    """
    names = {
        "time_in": ("time_embedding.linear_1", "time_embed.0"),
        "time_out": ("time_embedding.linear_2", "time_embed.2"),
        "image_embedding_projection": ("proj_in", "clip_img_proj"),
        "text_embedding_projection": ("embedding_proj", "text_emb_proj"),
        "text_projection": ("encoder_hidden_states_proj", "text_enc_proj"),
        "projection": ("proj_to_clip_embeddings", "out_proj"),
    }
    column = ("diffusers", "karlo").index(naming)
    heads, depth = config.transformer.heads, config.transformer.depth

    def block(i: int) -> KeyMap:
        if naming == "karlo":
            there = f"transformer.resblocks.{i}"
            return [
                *norm("attention_norm", f"{there}.ln_1"),
                *packed("qkv", f"{there}.attn.c_qkv", heads),
                *dense("attention_out", f"{there}.attn.c_proj"),
                *norm("mlp_norm", f"{there}.ln_2"),
                *dense("mlp_in", f"{there}.mlp.c_fc"),
                *dense("mlp_out", f"{there}.mlp.c_proj"),
            ]
        there = f"transformer_blocks.{i}"
        return [
            *norm("attention_norm", f"{there}.norm1"),
            *joined("qkv", [f"{there}.attn1.to_{part}" for part in "qkv"]),
            *dense("attention_out", f"{there}.attn1.to_out.0"),
            *norm("mlp_norm", f"{there}.norm3"),  # norm2 is cross attention's, which it has not
            *dense("mlp_in", f"{there}.ff.net.0.proj"),
            *dense("mlp_out", f"{there}.ff.net.2"),
        ]

    return [
        *(entry for here, there in names.items() for entry in dense(here, there[column])),
        *same("positional_embedding", "positional_embedding", Squeezed((0,))),
        *same("query", ("prd_embedding", "prd_emb")[column], Squeezed((0, 1))),
        *norm("norm_out", ("norm_out", "final_ln")[column]),
        *under(stacked(depth, block), target="transformer/blocks/"),
    ]


def projection_keys(config: DecoderConfig, naming: Naming) -> KeyMap:
    """What is around the decoder's U-Net: UnCLIPTextProjModel, or Karlo's decoder file."""
    names = {
        "text_to_time": ("embedding_proj", "text_feat_proj"),
        "embedding_to_time": ("clip_image_embeddings_project_to_time_embeddings", "clip_emb"),
        "states_to_context": ("encoder_hidden_states_proj", "text_seq_proj.0"),
    }
    column = ("diffusers", "karlo").index(naming)
    # Its rows are [width, tokens], ours [tokens, width].
    tokens = ("clip_extra_context_tokens_proj", "clip_tok_proj")[column]
    width = config.unet.context_width or 0
    return [
        *(entry for here, there in names.items() for entry in dense(here, there[column])),
        *norm("states_norm", ("text_encoder_hidden_states_norm", "text_seq_proj.1")[column]),
        *packed("embedding_to_tokens", tokens, width, config.num_embedding_tokens),
        *same(
            "null_embedding", ("learned_classifier_free_guidance_embeddings", "cf_param")[column]
        ),
    ]


def decoder_keys(config: DecoderConfig, naming: Naming) -> KeyMap:
    """Karlo's decoder → params of `Decoder`.

    diffusers' two components are told apart by prefixes that the importer gives them: `decoder.`
    and `text_proj.`.
    """
    unet = under(_unet_keys(config.unet, naming), target="unet/")
    projections = projection_keys(config, naming)
    if naming == "karlo":
        return [*unet, *projections]
    return [*under(unet, source="decoder."), *under(projections, source="text_proj.")]


def upsampler_keys(config: UNetConfig, naming: Naming) -> KeyMap:
    """One of the two super-resolution networks → params of `Upsampler`."""
    return under(_unet_keys(config, naming), target="unet/")


def _unet_keys(config: UNetConfig, naming: Naming) -> KeyMap:
    return adm_unet_keys(config) if naming == "karlo" else diffusers_unet_keys(config)
