"""Frozen runs of the PyTorch references, and their weights as parameter trees of this package.

`tests/golden/parity_*.npz` hold tiny networks with random weights that the original code (OpenAI's
CLIP layout, GLIDE, ADM; diffusers for Karlo) was run with: `w/` the state dict, `in/` and `out/`,
pictures as NCHW. Three layouts are read: OpenAI's CLIP; ADM's and GLIDE's U-Net and text
transformer; diffusers' U-Net and prior. What is read from `Weights` is taken out of it, so that a
test can assert that nothing was left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.models.unet import UNetConfig

Tree = dict[str, Any]


class Weights:
    """A flat state dict from which every array is taken once."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._left = dict(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> np.ndarray:
        return self._left.pop(name)

    def unread(self) -> list[str]:
        return sorted(self._left)

    def dense(self, name: str) -> Tree:
        """A Linear, or a Conv1d with a kernel of 1."""
        kernel = self.take(f"{name}.weight")
        return {"kernel": kernel.reshape(kernel.shape[:2]).T, "bias": self.take(f"{name}.bias")}

    def conv(self, name: str) -> Tree:
        tree = {"kernel": self.take(f"{name}.weight").transpose(2, 3, 1, 0)}
        return tree | ({"bias": self.take(f"{name}.bias")} if f"{name}.bias" in self else {})

    def norm(self, name: str) -> Tree:
        return {"scale": self.take(f"{name}.weight"), "bias": self.take(f"{name}.bias")}

    def per_head(self, name: str, heads: int, parts: int) -> Tree:
        """A packed projection whose rows are [q_h | k_h | v_h] head by head, as [Q | K | V]."""
        packed = self.dense(name)

        def unpack(x: np.ndarray) -> np.ndarray:
            by_head = x.reshape(*x.shape[:-1], heads, parts, -1)
            return np.moveaxis(by_head, -2, -3).reshape(x.shape)

        return {key: unpack(value) for key, value in packed.items()}

    def joined(self, *names: str) -> Tree:
        """Separate projections as one: [Q | K | V]."""
        parts = [self.dense(name) for name in names]
        return {key: np.concatenate([p[key] for p in parts], axis=-1) for key in parts[0]}


class Golden:
    """One frozen run."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        parts = {
            part: {
                k.removeprefix(f"{part}/"): v for k, v in arrays.items() if k.startswith(f"{part}/")
            }
            for part in ("w", "in", "out")
        }
        self.weights = Weights(parts["w"])
        self.inputs, self.outputs = parts["in"], parts["out"]

    def picture(self, name: str) -> np.ndarray:
        """An input as NHWC."""
        return self.inputs[name].transpose(0, 2, 3, 1)

    def check(self, found: Any, name: str, *, channels_last: bool = False) -> None:
        """`found` equals the output `name` to 1e-5 of its norm, in every row."""
        found, expected = np.asarray(found), self.outputs[name]
        if channels_last:
            expected = np.moveaxis(expected, 1, -1)
        assert found.shape == expected.shape
        for got, wanted in zip(found, expected, strict=True):
            assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)


def stacked(blocks: list[Tree]) -> Tree:
    """Equal trees as one with a leading axis, as `nn.scan` keeps its layers."""
    first = blocks[0]
    return {
        key: stacked([b[key] for b in blocks])
        if isinstance(value, dict)
        else np.stack([b[key] for b in blocks])
        for key, value in first.items()
    }


def _transformer(weights: Weights, prefix: str, names: dict[str, str], heads: int | None) -> Tree:
    """Residual blocks of OpenAI's kind; `heads` where queries, keys and values are interleaved."""
    blocks = []
    while f"{prefix}.{len(blocks)}.ln_1.weight" in weights:
        block = f"{prefix}.{len(blocks)}"
        if heads is None:
            attention = f"{block}.attn.in_proj"
            qkv = {
                "kernel": weights.take(f"{attention}_weight").T,
                "bias": weights.take(f"{attention}_bias"),
            }
        else:
            qkv = weights.per_head(f"{block}.attn.c_qkv", heads, 3)
        blocks.append(
            {
                "attention_norm": weights.norm(f"{block}.ln_1"),
                "qkv": qkv,
                "attention_out": weights.dense(f"{block}.{names['attention_out']}"),
                "mlp_norm": weights.norm(f"{block}.ln_2"),
                "mlp_in": weights.dense(f"{block}.mlp.c_fc"),
                "mlp_out": weights.dense(f"{block}.mlp.c_proj"),
            }
        )
    return {"blocks": stacked(blocks)}


def clip_from_openai(weights: Weights) -> Tree:
    """OpenAI's CLIP (ViT) → params of `CLIP`."""
    names = {"attention_out": "attn.out_proj"}
    vision = {
        "patch_embedding": weights.conv("visual.conv1"),
        "class_embedding": weights.take("visual.class_embedding"),
        "positional_embedding": weights.take("visual.positional_embedding"),
        "norm_in": weights.norm("visual.ln_pre"),
        "transformer": _transformer(weights, "visual.transformer.resblocks", names, None),
        "norm_out": weights.norm("visual.ln_post"),
        "projection": {"kernel": weights.take("visual.proj")},
    }
    text = {
        "token_embedding": {"embedding": weights.take("token_embedding.weight")},
        "positional_embedding": weights.take("positional_embedding"),
        "transformer": _transformer(weights, "transformer.resblocks", names, None),
        "norm_out": weights.norm("ln_final"),
        "projection": {"kernel": weights.take("text_projection")},
    }
    return {"vision": vision, "text": text, "logit_scale": weights.take("logit_scale")}


def glide_text(weights: Weights, heads: int) -> Tree:
    """GLIDE's text transformer → params of `TextTransformer`."""
    names = {"attention_out": "attn.c_proj"}
    return {
        "token_embedding": {"embedding": weights.take("token_embedding.weight")},
        "positional_embedding": weights.take("positional_embedding"),
        "padding_embedding": weights.take("padding_embedding"),
        "transformer": _transformer(weights, "transformer.resblocks", names, heads),
        "norm_out": weights.norm("final_ln"),
    }


def _unet_blocks(c: UNetConfig) -> Iterator[tuple[str, str, str, str, int]]:
    """(name here, kind, name in ADM, name in diffusers, channels) of every block of a U-Net."""
    levels, n = len(c.channel_mult), 1
    for level, mult in enumerate(c.channel_mult):
        theirs, width = f"down_blocks.{level}", c.channels * mult
        for i in range(c.level_depth(level)):
            adm = f"input_blocks.{n}"
            yield f"down{level}_block{i}", "block", f"{adm}.0", f"{theirs}.resnets.{i}", width
            if c.attends(level):
                here = f"down{level}_attention{i}"
                yield here, "attention", f"{adm}.1", f"{theirs}.attentions.{i}", width
            n += 1
        if level < levels - 1:
            here, other = f"down{level}_downsample", f"{theirs}.downsamplers.0"
            yield here, "block", f"input_blocks.{n}.0", other, width
            n += 1
    width, has_attention = c.channels * c.channel_mult[-1], c.has_middle_attention
    yield "middle_block0", "block", "middle_block.0", "mid_block.resnets.0", width
    if has_attention:
        other = "mid_block.attentions.0"
        yield "middle_attention", "attention", "middle_block.1", other, width
    last = f"middle_block.{1 + has_attention}"
    yield "middle_block1", "block", last, "mid_block.resnets.1", width
    n = 0
    for level in reversed(range(levels)):
        theirs, width = f"up_blocks.{levels - 1 - level}", c.channels * c.channel_mult[level]
        for i in range(c.level_depth(level) + 1):
            adm, attends = f"output_blocks.{n}", c.attends(level)
            yield f"up{level}_block{i}", "block", f"{adm}.0", f"{theirs}.resnets.{i}", width
            if attends:
                here = f"up{level}_attention{i}"
                yield here, "attention", f"{adm}.1", f"{theirs}.attentions.{i}", width
            if level and i == c.level_depth(level):
                here, other = f"up{level}_upsample", f"{theirs}.upsamplers.0"
                yield here, "block", f"{adm}.{1 + attends}", other, width
            n += 1


ADM_BLOCK = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
DIFFUSERS_BLOCK = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")


def _res_block(weights: Weights, name: str, names: tuple[str, ...], skip: str) -> Tree:
    norm_in, conv_in, time, norm_out, conv_out = (f"{name}.{part}" for part in names)
    tree = {
        "norm_in": weights.norm(norm_in),
        "conv_in": weights.conv(conv_in),
        "time_projection": weights.dense(time),
        "norm_out": weights.norm(norm_out),
        "conv_out": weights.conv(conv_out),
    }
    has_skip = f"{name}.{skip}.weight" in weights
    return tree | ({"skip": weights.conv(f"{name}.{skip}")} if has_skip else {})


def unet_from_adm(weights: Weights, config: UNetConfig) -> Tree:
    """ADM's, GLIDE's and Karlo's own U-Net files, legacy attention order → params of `UNet`."""

    def attention(name: str, width: int) -> Tree:
        heads = config.num_heads(width)
        tree = {
            "norm": weights.norm(f"{name}.norm"),
            "qkv": weights.per_head(f"{name}.qkv", heads, 3),
            "projection": weights.dense(f"{name}.proj_out"),
        }
        if config.context_width is None:
            return tree
        return tree | {"context_kv": weights.per_head(f"{name}.encoder_kv", heads, 2)}

    tree = {
        "time_in": weights.dense("time_embed.0"),
        "time_out": weights.dense("time_embed.2"),
        "conv_in": weights.conv("input_blocks.0.0"),
        "norm_out": weights.norm("out.0"),
        "conv_out": weights.conv("out.2"),
    }
    for here, kind, name, _, width in _unet_blocks(config):
        if kind == "attention":
            tree[here] = attention(name, width)
        else:
            tree[here] = _res_block(weights, name, ADM_BLOCK, "skip_connection")
    return tree


def unet_from_diffusers(weights: Weights, config: UNetConfig) -> Tree:
    """diffusers' UNet2DConditionModel with added keys and values (Karlo), or UNet2DModel."""

    def attention(name: str) -> Tree:
        return {
            "norm": weights.norm(f"{name}.group_norm"),
            "qkv": weights.joined(*(f"{name}.to_{part}" for part in "qkv")),
            "context_kv": weights.joined(f"{name}.add_k_proj", f"{name}.add_v_proj"),
            "projection": weights.dense(f"{name}.to_out.0"),
        }

    tree = {
        "time_in": weights.dense("time_embedding.linear_1"),
        "time_out": weights.dense("time_embedding.linear_2"),
        "conv_in": weights.conv("conv_in"),
        "norm_out": weights.norm("conv_norm_out"),
        "conv_out": weights.conv("conv_out"),
    }
    read: dict[str, Callable[[str], Tree]] = {
        "attention": attention,
        "block": lambda name: _res_block(weights, name, DIFFUSERS_BLOCK, "conv_shortcut"),
    }
    for here, kind, _, name, _ in _unet_blocks(config):
        tree[here] = read[kind](name)
    return tree


def prior_from_diffusers(weights: Weights) -> Tree:
    """diffusers' PriorTransformer → params of `DiffusionPrior`; CLIP's statistics stay behind."""
    blocks = []
    while f"transformer_blocks.{len(blocks)}.norm1.weight" in weights:
        block = f"transformer_blocks.{len(blocks)}"
        blocks.append(
            {
                "attention_norm": weights.norm(f"{block}.norm1"),
                "qkv": weights.joined(*(f"{block}.attn1.to_{part}" for part in "qkv")),
                "attention_out": weights.dense(f"{block}.attn1.to_out.0"),
                "mlp_norm": weights.norm(f"{block}.norm3"),
                "mlp_in": weights.dense(f"{block}.ff.net.0.proj"),
                "mlp_out": weights.dense(f"{block}.ff.net.2"),
            }
        )
    return {
        "time_in": weights.dense("time_embedding.linear_1"),
        "time_out": weights.dense("time_embedding.linear_2"),
        "image_embedding_projection": weights.dense("proj_in"),
        "text_embedding_projection": weights.dense("embedding_proj"),
        "text_projection": weights.dense("encoder_hidden_states_proj"),
        "positional_embedding": weights.take("positional_embedding")[0],
        "query": weights.take("prd_embedding")[0, 0],
        "transformer": {"blocks": stacked(blocks)},
        "norm_out": weights.norm("norm_out"),
        "projection": weights.dense("proj_to_clip_embeddings"),
    }
