"""ADM's and GLIDE's networks once more, in torch, written from their descriptions for these tests.

A network is its constructor's arguments; its weights are drawn when a name is first asked for, so
one forward pass makes the state dict that a file of such a network would hold. All of it is float64
and NCHW; nothing of the package under test is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class State:
    """Random weights by name; float32 values, so that a file can hold them."""

    seed: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, *shape: int, around: float = 0.0, scale: float = 0.0) -> Tensor:
        if name not in self.tensors:
            seed = [self.seed, *name.encode()]
            values = np.random.default_rng(seed).standard_normal(shape)
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
            values = around + values * (scale or fan_in**-0.5)
            self.tensors[name] = torch.tensor(values.astype(np.float32)).double()
        return self.tensors[name]

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.float().numpy() for name, tensor in self.tensors.items()}

    def linear(self, name: str, x: Tensor, outputs: int) -> Tensor:
        weight = self(f"{name}.weight", outputs, x.shape[-1])
        return x @ weight.T + self(f"{name}.bias", outputs)

    def conv(self, name: str, x: Tensor, outputs: int, size: int = 3) -> Tensor:
        weight = self(f"{name}.weight", outputs, x.shape[1], size, size)
        return F.conv2d(x, weight, self(f"{name}.bias", outputs), padding=size // 2)

    def conv1d(self, name: str, x: Tensor, outputs: int) -> Tensor:
        weight = self(f"{name}.weight", outputs, x.shape[1], 1)
        return F.conv1d(x, weight, self(f"{name}.bias", outputs))

    def group_norm(self, name: str, x: Tensor, groups: int) -> Tensor:
        gain, bias = self(f"{name}.weight", x.shape[1], around=1), self(f"{name}.bias", x.shape[1])
        return F.group_norm(x, groups, gain, bias, eps=1e-5)

    def layer_norm(self, name: str, x: Tensor, gain: str = "weight", bias: str = "bias") -> Tensor:
        width = x.shape[-1]
        parts = self(f"{name}.{gain}", width, around=1), self(f"{name}.{bias}", width)
        return F.layer_norm(x, (width,), *parts, eps=1e-5)


@dataclass
class Network:
    """The arguments of OpenAI's U-Nets; `attention_ds` are the factors of attending levels."""

    model_channels: int = 8
    channel_mult: tuple[float, ...] = (1, 2)
    num_res_blocks: int = 1
    attention_ds: tuple[int, ...] = (2,)
    num_heads: int = 1
    num_head_channels: int | None = 8
    groups: int = 4
    scale_shift: bool = True
    new_order: bool = False
    in_channels: int = 3
    out_channels: int = 6
    num_classes: int | None = None
    encoder_channels: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.state = State(self.seed)

    def unet(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, in, H, W], the summed embedding and [B, width, L] → [B, out, H, W]."""
        skips = self._down(x, emb, context)
        h = self._middle(skips[-1], emb, context)
        factor, number = 2 ** (len(self.channel_mult) - 1), 0
        for level in reversed(range(len(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                name, part = f"output_blocks.{number}", 1
                h = torch.cat([h, skips.pop()], dim=1)
                h = self._block(f"{name}.0", h, emb, self._width(level))
                if factor in self.attention_ds:
                    h, part = self._attend(f"{name}.1", h, context), 2
                if level and i == self.num_res_blocks:
                    h = self._block(f"{name}.{part}", h, emb, self._width(level), "up")
                    factor //= 2
                number += 1
        h = F.silu(self.state.group_norm("out.0", h, self.groups))
        return self.state.conv("out.2", h, self.out_channels)

    def classify(self, x: Tensor, t: Tensor, classes: int) -> Tensor:
        """[B, in, H, W] and [B] → logits."""
        emb = self.time(t)
        h = self._middle(self._down(x, emb, None)[-1], emb, None)
        h = F.silu(self.state.group_norm("out.0", h, self.groups)).flatten(2)
        h = torch.cat([h.mean(-1, keepdim=True), h], dim=-1)
        h = h + self.state("out.2.positional_embedding", *h.shape[1:])
        width = h.shape[1]
        q, k, v = self.state.conv1d("out.2.qkv_proj", h, 3 * width).chunk(3, dim=1)
        h = attend(q, k, v, width // (self.num_head_channels or 1))
        return self.state.conv1d("out.2.c_proj", h, classes)[:, :, 0]

    def time(self, t: Tensor) -> Tensor:
        half = self.model_channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half).double() / half)
        angles = t.double()[:, None] * frequencies
        h = torch.cat([angles.cos(), angles.sin()], dim=-1)
        width = 4 * self.model_channels
        h = F.silu(self.state.linear("time_embed.0", h, width))
        return self.state.linear("time_embed.2", h, width)

    def label(self, y: Tensor) -> Tensor:
        assert self.num_classes is not None
        width = 4 * self.model_channels
        return self.state("label_emb.weight", self.num_classes, width, scale=1.0)[y]

    def caption(
        self, tokens: Tensor, mask: Tensor, vocab: int, width: int, depth: int, heads: int
    ) -> tuple[Tensor, Tensor]:
        """[B, L] ids and mask → what joins the time embedding, and states [B, width, L]."""
        state, length = self.state, tokens.shape[1]
        h = state("token_embedding.weight", vocab, width, scale=1.0)[tokens]
        h = h + state("positional_embedding", length, width)
        padding = state("padding_embedding", length, width)
        h = torch.where(mask[..., None], h, padding)
        for i in range(depth):
            name = f"transformer.resblocks.{i}"
            normed = state.layer_norm(f"{name}.ln_1", h)
            packed = state.linear(f"{name}.attn.c_qkv", normed, 3 * width).mT
            heads_out = attend(*unpack(packed, heads, 3, False), heads).mT
            h = h + state.linear(f"{name}.attn.c_proj", heads_out, width)
            normed = state.layer_norm(f"{name}.ln_2", h)
            hidden = F.gelu(state.linear(f"{name}.mlp.c_fc", normed, 4 * width))
            h = h + state.linear(f"{name}.mlp.c_proj", hidden, width)
        h = state.layer_norm("final_ln", h)
        return state.linear("transformer_proj", h[:, -1], 4 * self.model_channels), h.mT

    def _width(self, level: int) -> int:
        return int(self.channel_mult[level] * self.model_channels)

    def _down(self, x: Tensor, emb: Tensor, context: Tensor | None) -> list[Tensor]:
        h = self.state.conv("input_blocks.0.0", x, self._width(0))
        states, factor, number = [h], 1, 1
        for level in range(len(self.channel_mult)):
            for _ in range(self.num_res_blocks):
                h = self._block(f"input_blocks.{number}.0", h, emb, self._width(level))
                if factor in self.attention_ds:
                    h = self._attend(f"input_blocks.{number}.1", h, context)
                states.append(h)
                number += 1
            if level < len(self.channel_mult) - 1:
                h = self._block(f"input_blocks.{number}.0", h, emb, self._width(level), "down")
                states.append(h)
                number, factor = number + 1, 2 * factor
        return states

    def _middle(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        h = self._block("middle_block.0", h, emb, h.shape[1])
        h = self._attend("middle_block.1", h, context)
        return self._block("middle_block.2", h, emb, h.shape[1])

    def _block(self, name: str, x: Tensor, emb: Tensor, width: int, change: str = "") -> Tensor:
        state, h = self.state, x
        h = F.silu(state.group_norm(f"{name}.in_layers.0", h, self.groups))
        if change == "up":
            h, x = (y.repeat_interleave(2, 2).repeat_interleave(2, 3) for y in (h, x))
        elif change == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = state.conv(f"{name}.in_layers.2", h, width)
        outputs = 2 * width if self.scale_shift else width
        time = state.linear(f"{name}.emb_layers.1", F.silu(emb), outputs)[..., None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = state.group_norm(f"{name}.out_layers.0", h, self.groups) * (1 + scale) + shift
        else:
            h = state.group_norm(f"{name}.out_layers.0", h + time, self.groups)
        h = state.conv(f"{name}.out_layers.3", F.silu(h), width)
        return h + (
            x if x.shape[1] == width else state.conv(f"{name}.skip_connection", x, width, 1)
        )

    def _attend(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        state, width = self.state, x.shape[1]
        heads = width // self.num_head_channels if self.num_head_channels else self.num_heads
        h = state.group_norm(f"{name}.norm", x, self.groups).flatten(2)
        packed = state.conv1d(f"{name}.qkv", h, 3 * width)
        q, k, v = unpack(packed, heads, 3, self.new_order)
        if context is not None:
            packed = state.conv1d(f"{name}.encoder_kv", context, 2 * width)
            context_k, context_v = unpack(packed, heads, 2, self.new_order)
            k, v = torch.cat([context_k, k], dim=-1), torch.cat([context_v, v], dim=-1)
        h = state.conv1d(f"{name}.proj_out", attend(q, k, v, heads), width)
        return x + h.reshape(x.shape)


def unpack(packed: Tensor, heads: int, parts: int, new_order: bool) -> tuple[Tensor, ...]:
    """[B, parts * heads * d, T] → `parts` times [B, heads * d, T]."""
    if new_order:
        return packed.chunk(parts, dim=1)
    by_head = packed.unflatten(1, (heads, parts, -1))
    return tuple(by_head[:, :, i].flatten(1, 2) for i in range(parts))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[B, heads * d, T] queries, [B, heads * d, S] keys and values → [B, heads * d, T]."""
    q, k, v = (part.unflatten(1, (heads, -1)) for part in (q, k, v))
    logits = torch.einsum("bhdt,bhds->bhts", q, k) / math.sqrt(q.shape[2])
    return torch.einsum("bhts,bhds->bhdt", logits.softmax(-1), v).flatten(1, 2)


def resized(low_resolution: Tensor, x: Tensor) -> Tensor:
    """Bilinear, half-pixel centres, at the size of `x`."""
    return F.interpolate(low_resolution, x.shape[2:], mode="bilinear", align_corners=False)


@dataclass
class NoisedEncoder:
    """One of the two encoders of GLIDE's noised CLIP."""

    width: int = 16
    depth: int = 2
    heads: int = 2
    embedding: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        self.state = State(self.seed)

    def image(self, x: Tensor, t: Tensor, patch: int, timesteps: int) -> Tensor:
        """[B, 3, S, S] in [-1, 1] and [B] → [B, embedding]; the pixels count from 0 to 255."""
        mean = torch.tensor([122.77093945, 116.74601272, 104.09373519]).double()[:, None, None]
        std = torch.tensor([68.50053285, 66.63215831, 70.32316309]).double()[:, None, None]
        kernel = self.state("blocks.input.patch_proj", self.width, 3, patch, patch)
        h = F.conv2d(((x + 1) * 127.5 - mean) / std, kernel, stride=patch).flatten(2).mT
        token = self.state("blocks.input.w_t", timesteps, self.width, scale=1.0)[t]
        h = torch.cat([token[:, None], h], dim=1)
        h = h + self.state("blocks.input.w_pos", h.shape[1], self.width)
        h = self._blocks(self._norm("blocks.input", h), None)
        return self._project(h[:, 0])

    def text(self, tokens: Tensor, last: Tensor, vocab: int) -> Tensor:
        """[B, L] ids and the position at which each row is read → [B, embedding]."""
        length = tokens.shape[1]
        h = self.state("blocks.input.w_voc", vocab, self.width, scale=1.0)[tokens]
        h = h + self.state("blocks.input.w_pos", length, self.width)
        later = torch.ones(length, length).triu(1).bool()
        h = self._blocks(h, later)
        return self._project(h[torch.arange(len(h)), last])

    def _blocks(self, h: Tensor, hidden_from: Tensor | None) -> Tensor:
        for i in range(self.depth):
            name = f"blocks.block_{i}"
            r = self._norm(f"{name}.f_attn", h)
            q = self._affine(f"{name}.f_attn.f_q", r, self.width)
            k = r @ self.state(f"{name}.f_attn.f_k.w", self.width, self.width).T
            v = self._affine(f"{name}.f_attn.f_v", r, self.width)
            q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))
            logits = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
            if hidden_from is not None:
                logits = logits.masked_fill(hidden_from, -1e10)
            r = torch.einsum("bhts,bshd->bthd", logits.softmax(-1), v).flatten(2)
            h = h + self._affine(f"{name}.f_attn.f_c", r, self.width)
            r = F.gelu(
                self._affine(f"{name}.f_mlp.f_1", self._norm(f"{name}.f_mlp", h), 4 * self.width)
            )
            h = h + self._affine(f"{name}.f_mlp.f_2", r, self.width)
        return h

    def _project(self, h: Tensor) -> Tensor:
        return (
            self._norm("blocks.output", h)
            @ self.state("blocks.output.f.w", self.embedding, self.width).T
        )

    def _norm(self, name: str, h: Tensor) -> Tensor:
        return self.state.layer_norm(f"{name}.ln", h, "g", "b")

    def _affine(self, name: str, h: Tensor, outputs: int) -> Tensor:
        return h @ self.state(f"{name}.w", outputs, h.shape[-1]).T + self.state(
            f"{name}.b", outputs
        )
