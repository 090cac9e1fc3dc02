"""The shipped emoji model in PyTorch: its exported weights, and the networks as torch likes them.

Caption → CLIP → diffusion prior (best of two draws) → decoder by DDIM with guidance, both branches
as one batch. Convolutions run channels last, attention is torch's fused one. What does not change
from step to step (captions, the decoder's context) is computed once here too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

EPSILON = 1e-5
Weights = dict[str, Tensor]


def read_stage(folder: Path) -> tuple[dict[str, Any], Weights]:
    """The recipe and the weights, float32."""
    recipe = json.loads((folder / "config.json").read_text())["recipe"]
    tensors = load_file(str(folder / "model.safetensors"))
    return recipe, {name: tensor.float() for name, tensor in tensors.items()}


def under(weights: Weights, prefix: str) -> Weights:
    """What lies under `prefix/`, by the rest of its name."""
    start = f"{prefix}/"
    return {name[len(start) :]: w for name, w in weights.items() if name.startswith(start)}


def linear(weights: Weights, name: str) -> nn.Linear:
    """A Dense: kernels are stored [in, out]."""
    kernel, bias = weights[f"{name}/kernel"], weights.get(f"{name}/bias")
    layer = nn.Linear(kernel.shape[0], kernel.shape[1], bias=bias is not None)
    layer.weight.data = kernel.T.contiguous()
    if bias is not None:
        layer.bias.data = bias
    return layer


def conv(weights: Weights, name: str) -> nn.Conv2d:
    """A convolution: kernels are stored [H, W, in, out]."""
    kernel = weights[f"{name}/kernel"]
    side, _, inside, outside = kernel.shape
    layer = nn.Conv2d(inside, outside, side, padding=side // 2)
    layer.weight.data = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    layer.bias.data = weights[f"{name}/bias"]
    return layer


def norm(weights: Weights, name: str, groups: int | None = None) -> nn.Module:
    """LayerNorm, or GroupNorm."""
    scale, bias = weights[f"{name}/scale"], weights[f"{name}/bias"]
    layer: Any = (
        nn.LayerNorm(len(scale), EPSILON)
        if groups is None
        else nn.GroupNorm(groups, len(scale), EPSILON)
    )
    layer.weight.data, layer.bias.data = scale, bias
    return layer


class Block(nn.Module):
    """Pre-LN attention and MLP."""

    def __init__(self, weights: Weights, heads: int, activation: str) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.norm_1, self.norm_2 = norm(weights, "attention_norm"), norm(weights, "mlp_norm")
        self.qkv, self.out = linear(weights, "qkv"), linear(weights, "attention_out")
        self.mlp_in, self.mlp_out = linear(weights, "mlp_in"), linear(weights, "mlp_out")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(rows, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(h.transpose(1, 2).reshape(rows, length, width))
        h = self.mlp_in(self.norm_2(x))
        h = h * torch.sigmoid(1.702 * h) if self.activation == "quick_gelu" else F.gelu(h)
        return x + self.mlp_out(h)


class Tower(nn.Module):
    """Blocks whose weights are stored stacked."""

    def __init__(self, weights: Weights, config: dict[str, Any]) -> None:
        super().__init__()
        stacked = under(weights, "blocks")
        self.blocks = nn.ModuleList(
            Block({n: w[i] for n, w in stacked.items()}, config["heads"], config["activation"])
            for i in range(config["depth"])
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class TextEncoder(nn.Module):
    """CLIP's."""

    def __init__(self, recipe: dict[str, Any], weights: Weights) -> None:
        super().__init__()
        weights = under(weights, "text")
        self.table = nn.Embedding.from_pretrained(weights["token_embedding/embedding"])
        self.positions = nn.Parameter(weights["positional_embedding"])
        self.tower = Tower(under(weights, "transformer"), recipe["model"]["text"])
        self.norm, self.projection = norm(weights, "norm_out"), linear(weights, "projection")

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        states = self.norm(self.tower(self.table(tokens) + self.positions, causal))
        pooled = states[torch.arange(len(tokens)), tokens.argmax(1)]
        return F.normalize(self.projection(pooled), dim=-1), states


class Prior(nn.Module):
    """The diffusion prior, over the whole sequence at every step."""

    def __init__(self, recipe: dict[str, Any], weights: Weights) -> None:
        super().__init__()
        config = recipe["model"]
        self.width = config["transformer"]["width"]
        scale = config["embedding_scale"]
        self.scale = scale or 17.2 / math.sqrt(1024) * math.sqrt(config["embedding_width"])
        self.positions = nn.Parameter(weights["positional_embedding"])
        self.query = nn.Parameter(weights["query"])
        self.tower = Tower(under(weights, "transformer"), config["transformer"])
        self.norm, self.projection = norm(weights, "norm_out"), linear(weights, "projection")
        names = ("time_in", "time_out", "image_embedding_projection")
        names += ("text_embedding_projection", "text_projection")
        self.layers = nn.ModuleDict({name: linear(weights, name) for name in names})

    def forward(self, x: Tensor, t: Tensor, text: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        layer, rows = self.layers, len(x)
        time = layer["time_out"](F.silu(layer["time_in"](sinusoids(t, self.width))))
        tail = [layer["text_embedding_projection"](text * self.scale), time]
        tail += [layer["image_embedding_projection"](x), self.query.expand(rows, -1)]
        sequence = torch.cat([layer["text_projection"](states), torch.stack(tail, 1)], 1)
        length = sequence.shape[1]
        visible = F.pad(mask, (0, length - mask.shape[1]), value=True)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        seen = causal & visible[:, None, None, :]
        out = self.tower(sequence + self.positions, seen)[:, -1]
        return self.projection(self.norm(out))


class ResBlock(nn.Module):
    """ADM's."""

    def __init__(self, weights: Weights, groups: int, resample: str | None) -> None:
        super().__init__()
        self.resample = resample
        self.norm_in, self.norm_out = (norm(weights, f"norm_{n}", groups) for n in ("in", "out"))
        self.conv_in, self.conv_out = conv(weights, "conv_in"), conv(weights, "conv_out")
        self.time = linear(weights, "time_projection")
        self.skip = conv(weights, "skip") if "skip/kernel" in weights else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.norm_in(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = (F.interpolate(part, scale_factor=2, mode="nearest") for part in (h, x))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = self.norm_out(self.conv_in(h)) * (1 + scale) + shift
        return self.skip(x) + self.conv_out(F.silu(h))


class AttentionBlock(nn.Module):
    """GLIDE's: context and pixels in one softmax."""

    def __init__(self, weights: Weights, groups: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm(weights, "norm", groups)
        self.qkv, self.context = linear(weights, "qkv"), linear(weights, "context_kv")
        self.out = linear(weights, "projection")

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).view(rows, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        told = context.view(rows, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([told[0], k], 2), torch.cat([told[1], v], 2)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        h = self.out(h.transpose(1, 2).reshape(rows, -1, channels))
        return x + h.transpose(1, 2).view(rows, channels, height, width)


class UNet(nn.Module):
    """The decoder's U-Net, for contexts that are projected."""

    def __init__(self, config: dict[str, Any], weights: Weights) -> None:
        super().__init__()
        self.config = config
        groups = config["groups"]
        self.width = config.get("time_channels") or config["channels"]
        self.time_in, self.time_out = linear(weights, "time_in"), linear(weights, "time_out")
        self.conv_in, self.conv_out = conv(weights, "conv_in"), conv(weights, "conv_out")
        self.norm_out = norm(weights, "norm_out", groups)
        names = sorted({name.split("/")[0] for name in weights})
        self.blocks = nn.ModuleDict()
        for name in names:
            own = under(weights, name)
            if "qkv/kernel" in own:
                channels = own["projection/bias"].shape[0]
                heads = config["heads"] or channels // config["head_channels"]
                self.blocks[name] = AttentionBlock(own, groups, heads)
            elif "time_projection/kernel" in own:
                kind = name.rsplit("_", 1)[1].removesuffix("sample")
                resample = kind if kind in ("down", "up") else None
                self.blocks[name] = ResBlock(own, groups, resample)

    def project(self, context: Tensor) -> dict[str, Tensor]:
        """Keys and values for every attention block."""
        return {
            name: block.context(context)
            for name, block in self.blocks.items()
            if isinstance(block, AttentionBlock)
        }

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor, context: dict[str, Tensor], mask: Tensor
    ) -> Tensor:
        c = self.config
        time = self.time_out(F.silu(self.time_in(sinusoids(t, self.width)))) + condition
        levels, depth = len(c["channel_mult"]), c["depth"]

        def run(name: str, h: Tensor) -> Tensor:
            h = self.blocks[name](h, time)
            other = name.replace("block", "attention")
            if name == "middle_block0":
                other = "middle_attention"
            return self.blocks[other](h, context[other], mask) if other in context else h

        h = self.conv_in(space_to_depth(x, c["patch_size"]))
        skips = [h]
        for level in range(levels):
            for i in range(depth[level % len(depth)]):
                h = run(f"down{level}_block{i}", h)
                skips.append(h)
            if level < levels - 1:
                h = run(f"down{level}_downsample", h)
                skips.append(h)
        h = run("middle_block1", run("middle_block0", h))
        for level in reversed(range(levels)):
            for i in range(depth[level % len(depth)] + 1):
                h = run(f"up{level}_block{i}", torch.cat([h, skips.pop()], 1))
            if level:
                h = run(f"up{level}_upsample", h)
        return depth_to_space(self.conv_out(F.silu(self.norm_out(h))), c["patch_size"])


class Decoder(nn.Module):
    """The U-Net, its text encoder and the ways in of the embedding."""

    def __init__(self, recipe: dict[str, Any], weights: Weights) -> None:
        super().__init__()
        config, text = recipe["model"], under(weights, "text")
        self.scale = config["embedding_scale"] or math.sqrt(config["embedding_width"])
        self.num_tokens = config["num_embedding_tokens"]
        self.table = nn.Embedding.from_pretrained(text["token_embedding/embedding"])
        self.positions = nn.Parameter(text["positional_embedding"])
        self.padding = nn.Parameter(text["padding_embedding"])
        self.tower = Tower(under(text, "transformer"), config["text"]["transformer"])
        self.norm = norm(text, "norm_out")
        names = ("text_to_time", "embedding_to_time", "embedding_to_tokens")
        self.layers = nn.ModuleDict({name: linear(weights, name) for name in names})
        self.unet = UNet(config["unet"], under(weights, "unet")).to(
            memory_format=torch.channels_last
        )

    def encode(self, embedding: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Any, ...]:
        """Time condition, keys and values, and the mask of the attention."""
        x = torch.where(mask[..., None], self.table(tokens) + self.positions, self.padding)
        states, embedding = self.norm(self.tower(x)), embedding * self.scale
        layer, rows = self.layers, len(tokens)
        condition = layer["text_to_time"](states[:, -1]) + layer["embedding_to_time"](embedding)
        front = layer["embedding_to_tokens"](embedding).view(rows, self.num_tokens, -1)
        context = self.unet.project(torch.cat([front, states], 1))
        seen = F.pad(mask, (self.num_tokens, 0), value=True)
        return condition, context, seen


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Cosines first."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 2) / (width // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def space_to_depth(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] → [B, size * size * C, H/size, W/size], the channel last within a patch."""
    rows, channels, height, width = x.shape
    x = x.view(rows, channels, height // size, size, width // size, size)
    x = x.permute(0, 3, 5, 1, 2, 4).reshape(rows, -1, height // size, width // size)
    return x.contiguous(memory_format=torch.channels_last)


def depth_to_space(x: Tensor, size: int) -> Tensor:
    """The inverse."""
    rows, channels, height, width = x.shape
    x = x.view(rows, size, size, channels // size**2, height, width)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(rows, -1, height * size, width * size)


class TorchEmoji:
    """Text → 64 pixels.

    Args:
        chains: of the prior and of the decoder: timesteps and abar of each step, first to last in
            time, and the decoder's guidance.
        is_compiled: prior and U-Net through `torch.compile`.
    """

    def __init__(self, folder: Path, chains: dict[str, Any], *, is_compiled: bool) -> None:
        self.chains = chains
        self.clip = TextEncoder(*read_stage(folder / "clip")).eval()
        self.prior = Prior(*read_stage(folder / "prior")).eval()
        self.decoder = Decoder(*read_stage(folder / "decoder")).eval()
        compiled: Any = torch.compile if is_compiled else lambda module: module
        self.run_prior, self.run_unet = compiled(self.prior), compiled(self.decoder.unet)

    @torch.inference_mode()
    def draw(
        self, tokens: np.ndarray, empty: np.ndarray, prior_noise: np.ndarray, x_T: np.ndarray
    ) -> np.ndarray:
        """
        Args:
            tokens: [B, L] int32; empty: [1, L].
            prior_noise: [2 B, steps, E], the start and what each step but the last adds.
            x_T: [B, 64, 64, 3].
        Returns:
            [B, 64, 64, 3] float32 in [-1, 1].
        """
        ids = torch.from_numpy(tokens).long()
        text, states = self.clip(ids)
        mask = seen_by(ids)
        twice = [part.repeat_interleave(2, 0) for part in (text, states, mask)]
        drawn = self._sample_prior(twice, torch.from_numpy(prior_noise))
        scores = (drawn.view(len(ids), 2, -1) * text[:, None]).sum(-1)
        embedding = drawn.view(len(ids), 2, -1)[torch.arange(len(ids)), scores.argmax(1)]

        none = torch.from_numpy(empty).long().expand(len(ids), -1)
        both = torch.cat([ids, none])
        given = torch.cat([embedding, torch.zeros_like(embedding)])
        condition, context, seen = self.decoder.encode(given, both, seen_by(both))
        return self._sample_decoder(torch.from_numpy(x_T), condition, context, seen)

    def _sample_prior(self, text: list[Tensor], noise: Tensor) -> Tensor:
        """64 ancestral steps that predict x_0, the small fixed variance."""
        chain = self.chains["prior"]
        x, last = noise[:, 0], len(chain["t"]) - 1
        for i, index in enumerate(range(last, -1, -1)):
            t = torch.full((len(x),), int(chain["t"][index]))
            x0 = self.run_prior(x, t, *text)
            x = chain["mean_x0"][index] * x0 + chain["mean_xt"][index] * x
            if index:
                x = x + chain["deviation"][index] * noise[:, i + 1]
        return F.normalize(x, dim=-1)

    def _sample_decoder(
        self,
        start: Tensor,
        condition: Tensor,
        context: dict[str, Tensor],
        seen: Tensor,
    ) -> np.ndarray:
        """DDIM that predicts v."""
        chain, x = self.chains["decoder"], start.permute(0, 3, 1, 2)
        config = self.decoder.unet.config
        (side,) = config["attention_resolutions"]  # one mask for all blocks
        mask = F.pad(seen, (0, side**2), value=True)[:, None, None]
        for index in range(len(chain["t"]) - 1, -1, -1):
            t = torch.full((2 * len(x),), int(chain["t"][index]))
            out = self.run_unet(torch.cat([x, x]), t, condition, context, mask)
            with_text, without = out.chunk(2)
            v = without + chain["guidance"] * (with_text - without)
            a, b = math.sqrt(chain["abar"][index]), math.sqrt(1 - chain["abar"][index])
            x0 = (a * x - b * v).clamp(-1, 1)
            eps = (x - a * x0) / b
            before = chain["abar"][index - 1] if index else 1.0
            x = math.sqrt(before) * x0 + math.sqrt(1 - before) * eps
        return x.permute(0, 2, 3, 1).numpy()


def seen_by(tokens: Tensor) -> Tensor:
    """[B, L] bool, up to the end of text."""
    return torch.arange(tokens.shape[1]) <= tokens.argmax(1, keepdim=True)
