"""GLIDE's noised CLIP, two files of one encoder each, as `models.noised_clip.NoisedCLIP`, and back.

Its keys have no bias: ours are zero there, and a softmax does not see them. The temperature is not
in the files; it is 100 in GLIDE's config. Names are the same in both files, so a key map puts
`image.` and `text.` before them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.key_map import Entry, KeyMap, same, stacked
from unclip_jax.interop.layouts import CONV, DENSE, Joined, Shape
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensors, without_prefix
from unclip_jax.interop.transfer import export_tensors, import_params
from unclip_jax.models.clip import MAX_LOGIT_SCALE, CLIPConfig
from unclip_jax.models.noised_clip import NoisedCLIP, NoisedCLIPConfig
from unclip_jax.models.transformer import TransformerConfig

HEAD_WIDTH = 64
"""Of the published encoders."""
_IMAGE, _TEXT = "image.", "text."


@dataclass(frozen=True)
class BiasesWithoutKeys:
    """Biases of queries and values as [q | 0 | v]; the keys have none."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise ValueError("needs two biases of one length")
        return (3 * shapes[0][0],)

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        queries, values = next(arrays), next(arrays)
        return np.concatenate([queries, np.zeros_like(queries), values])

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        queries, keys, values = np.split(array, 3)
        if np.any(keys):
            raise UserError(
                "a bias of the keys is not zero, and GLIDE's noised CLIP has none: set that third "
                "of transformer/blocks/qkv/bias to zero, which changes no output"
            )
        return [queries, values]


@dataclass(frozen=True)
class NoisedCLIPOptions:
    """What the files' shapes do not tell; None is width // 64, as published."""

    vision_heads: int | None = None
    text_heads: int | None = None

    def __post_init__(self) -> None:
        for name in ("vision_heads", "text_heads"):
            heads = getattr(self, name)
            if heads is not None and heads < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is {heads}: give 1 or more")


def load_noised_clip(
    image: Path, text: Path, options: NoisedCLIPOptions = NoisedCLIPOptions()
) -> tuple[NoisedCLIPConfig, Any]:
    """As `import_noised_clip`, from two files: torch's or safetensors."""
    what = f"{image} with {text}"
    return import_noised_clip(open_file(image).tensors, open_file(text).tensors, options, what=what)


def import_noised_clip(
    image: Tensors,
    text: Tensors,
    options: NoisedCLIPOptions = NoisedCLIPOptions(),
    *,
    what: str,
) -> tuple[NoisedCLIPConfig, Any]:
    """Both files as one network.

    Args:
        image, text: the file of the image encoder and that of the text encoder.
        what: how a message calls the two.
    Returns:
        The config of a `NoisedCLIP`, and its params: float32 arrays.
    Raises:
        UserError: the files do not fit, or do not fit each other.
    """
    config = infer_noised_clip(image, text, options, what=what)
    both = {_IMAGE + name: tensor for name, tensor in image.items()}
    both |= {_TEXT + name: tensor for name, tensor in text.items()}
    abstract = {k: v for k, v in noised_clip_shapes(config).items() if k != "logit_scale"}
    params = import_params(noised_clip_key_map(config), both, abstract, what=what)
    return config, params | {"logit_scale": np.float32(MAX_LOGIT_SCALE)}


def export_noised_clip(config: NoisedCLIPConfig, params: Any) -> tuple[Tensors, Tensors]:
    """The two files' tensors, the image encoder's and the text encoder's.

    Raises:
        UserError: the files cannot hold it: another temperature, or a bias of the keys.
    """
    scale = float(params["logit_scale"])
    if not math.isclose(scale, MAX_LOGIT_SCALE, rel_tol=1e-6):
        raise UserError(
            f"logit_scale is {scale:.6g}, and GLIDE's files hold none: it must be ln 100"
        )
    tensors = export_tensors(noised_clip_key_map(config), params)
    return without_prefix(tensors, _IMAGE), without_prefix(tensors, _TEXT)


def infer_noised_clip(
    image: Tensors,
    text: Tensors,
    options: NoisedCLIPOptions = NoisedCLIPOptions(),
    *,
    what: str,
) -> NoisedCLIPConfig:
    """The network that the files hold; see `import_noised_clip`."""
    if "blocks.input.w_voc" in image and "blocks.input.w_voc" not in text:
        raise UserError(f"{what}: the image encoder's file is the text encoder's: swap the two")
    patches = _shape(image, "blocks.input.patch_proj", 4, what)
    positions = _shape(image, "blocks.input.w_pos", 2, what)[0]
    side = math.isqrt(positions - 1) if positions > 1 else 0
    if side < 1 or side * side != positions - 1:
        raise UserError(f"{what} has {positions} positions, not 1 more than a square's")
    words = _shape(text, "blocks.input.w_voc", 2, what)
    widths = [_shape(tower, "blocks.output.f.w", 2, what)[0] for tower in (image, text)]
    if widths[0] != widths[1]:
        raise UserError(
            f"{what} has image embeddings of {widths[0]} and text embeddings of {widths[1]}: the "
            "two files are not of one CLIP"
        )
    return NoisedCLIPConfig(
        CLIPConfig(
            embedding_width=widths[0],
            image_size=side * patches[-1],
            patch_size=patches[-1],
            vision=_tower(image, options.vision_heads, "--vision-heads", what),
            text=_tower(text, options.text_heads, "--text-heads", what),
            vocab_size=words[0],
            context_length=_shape(text, "blocks.input.w_pos", 2, what)[0],
            initial_logit_scale=MAX_LOGIT_SCALE,
        ),
        num_timesteps=_shape(image, "blocks.input.w_t", 2, what)[0],
    )


def noised_clip_key_map(config: NoisedCLIPConfig) -> KeyMap:
    """Both files → params of `NoisedCLIP` but for the temperature."""
    clip = config.clip
    return [
        *same("vision/patch_embedding/kernel", f"{_IMAGE}blocks.input.patch_proj", CONV),
        *same("vision/time_embedding/embedding", f"{_IMAGE}blocks.input.w_t"),
        *_norm("vision/norm_in", f"{_IMAGE}blocks.input"),
        *_tower_keys("vision", _IMAGE, clip.image_tower.depth),
        *same("text/token_embedding/embedding", f"{_TEXT}blocks.input.w_voc"),
        *_tower_keys("text", _TEXT, clip.text.depth),
    ]


def noised_clip_shapes(config: NoisedCLIPConfig) -> Any:
    """Shapes of the parameters of `NoisedCLIP`."""
    side, length = config.clip.image_size, config.clip.context_length
    inputs = (
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )
    return jax.eval_shape(NoisedCLIP(config).init, jax.random.key(0), *inputs)["params"]


def _tower_keys(target: str, prefix: str, depth: int) -> KeyMap:
    def layer(i: int) -> KeyMap:
        here, block = f"{target}/transformer/blocks", f"{prefix}blocks.block_{i}"
        attention, mlp = f"{block}.f_attn", f"{block}.f_mlp"
        kernels = tuple(f"{attention}.f_{part}.w" for part in "qkv")
        biases = (f"{attention}.f_q.b", f"{attention}.f_v.b")
        return [
            *_norm(f"{here}/attention_norm", attention),
            Entry(f"{here}/qkv/kernel", kernels, Joined(3)),
            Entry(f"{here}/qkv/bias", biases, BiasesWithoutKeys()),
            *_affine(f"{here}/attention_out", f"{attention}.f_c"),
            *_norm(f"{here}/mlp_norm", mlp),
            *_affine(f"{here}/mlp_in", f"{mlp}.f_1"),
            *_affine(f"{here}/mlp_out", f"{mlp}.f_2"),
        ]

    return [
        *same(f"{target}/positional_embedding", f"{prefix}blocks.input.w_pos"),
        *stacked(depth, layer),
        *_norm(f"{target}/norm_out", f"{prefix}blocks.output"),
        Entry(f"{target}/projection/kernel", (f"{prefix}blocks.output.f.w",), DENSE),
    ]


def _norm(target: str, source: str) -> KeyMap:
    return [
        Entry(f"{target}/scale", (f"{source}.ln.g",)),
        Entry(f"{target}/bias", (f"{source}.ln.b",)),
    ]


def _affine(target: str, source: str) -> KeyMap:
    return [
        Entry(f"{target}/kernel", (f"{source}.w",), DENSE),
        Entry(f"{target}/bias", (f"{source}.b",)),
    ]


def _tower(tensors: Tensors, heads: int | None, option: str, what: str) -> TransformerConfig:
    width = _shape(tensors, "blocks.input.w_pos", 2, what)[1]
    names = (re.match(r"blocks\.block_(\d+)\.", name) for name in tensors)
    depth = len({match[1] for match in names if match})
    hidden = _shape(tensors, "blocks.block_0.f_mlp.f_1.w", 2, what)[0]
    if heads is None and width % HEAD_WIDTH:
        raise UserError(
            f"{what} has an encoder of width {width}, not a multiple of {HEAD_WIDTH}: give {option}"
        )
    heads = heads or width // HEAD_WIDTH
    return TransformerConfig(width, depth, heads, None if hidden == 4 * width else hidden)


def _shape(tensors: Tensors, name: str, axes: int, what: str) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) != axes:
        raise UserError(f"{what} has no {name} of {axes} axes: it is no noised CLIP of GLIDE's")
    return tensors[name].shape
