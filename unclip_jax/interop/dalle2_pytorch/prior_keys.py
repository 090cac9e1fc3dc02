"""Where a prior's network keeps its tensors, and which of them are no parameters."""

from __future__ import annotations

from unclip_jax.interop.dalle2_pytorch.prior_config import PriorNetworkConfig
from unclip_jax.interop.key_map import KeyMap, dense, same, stacked, under
from unclip_jax.interop.layouts import Squeezed

ROTARY = r"causal_transformer\.layers\.\d+\.0\.rotary_emb\.freqs"
"""The rotation's frequencies, one tensor under a name per layer. Not trained: checked, dropped."""

_ROW = Squeezed((0,))


def prior_key_map(config: PriorNetworkConfig) -> KeyMap:
    """Every parameter of `PriorNetwork` from a network's state dict, whose names have no 'net.'."""
    c = config
    padding = "null_text_encodings" if c.semantics.null_tokens else "null_text_embed"
    entries = same("learned_query", "learned_query")
    entries += same("null_text_encodings", padding, _ROW)
    if c.semantics.null_tokens:
        entries += same("null_text_embeds", "null_text_embeds", _ROW)
        entries += same("null_image_embed", "null_image_embed", _ROW)
    if c.num_timesteps is not None:
        entries += same("time_table/embedding", "to_time_embeds.0.weight")
    else:
        mlp = "to_time_embeds.0.1.net"
        entries += dense("time_in", f"{mlp}.0.0") + dense("time_hidden", f"{mlp}.1.0")
        entries += dense("time_out", f"{mlp}.2")
    for name, count in (("text", c.num_text_embeds), ("image", c.num_image_embeds)):
        if count > 1:
            entries += dense(f"{name}_tokens", f"to_{name}_embeds.0")
    return entries + under(_transformer(c), target="transformer/", source="causal_transformer.")


def _transformer(c: PriorNetworkConfig) -> KeyMap:
    entries = same("relative_bias", "rel_pos_bias.relative_attention_bias.weight")
    if c.norm_in:
        entries += _gain("norm_in", "init_norm")
    layers = stacked(c.depth, lambda i: under(_layer(c), source=f"layers.{i}."))
    entries += under(layers, target="blocks/")
    if c.norm_out:
        entries += _gain("norm_out", "norm")
    if c.final_proj:
        entries += dense("project_out", "project_out", bias=False)
    return entries


def _layer(c: PriorNetworkConfig) -> KeyMap:
    return [
        *_gain("attention_norm", "0.norm"),
        *dense("query", "0.to_q", bias=False),
        *dense("key_value", "0.to_kv", bias=False),
        *same("null_kv", "0.null_kv"),
        *dense("attention_out", "0.to_out.0", bias=False),
        *_gain("attention_out_norm", "0.to_out.1"),
        *_gain("feed_forward_norm", "1.0"),
        *dense("feed_forward_in", "1.1", bias=False),
        *(_gain("feed_forward_inner_norm", "1.3") if c.normformer else []),
        *dense("feed_forward_out", "1.5", bias=False),
    ]


def _gain(target: str, source: str) -> KeyMap:
    return same(f"{target}/scale", f"{source}.g")
