"""Small Karlos of any shape, in folders that diffusers and transformers wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.interop.clip_models import live
from unclip_jax.data.tokenizer import Tokenizer, train_bpe
from unclip_jax.interop.tokenizer_files import write_tokenizer

PROMPTS = ("a red apple", "two green hearts")


@dataclass(frozen=True)
class Tiny:
    """A Karlo of small numbers; the defaults are the quickest to compile."""

    seed: int = 0
    embedding: int = 12
    context: int = 13
    """Tokens of a caption; diffusers fails where 4 or more of them are as many as pixels."""
    text_heads: int = 2
    prior: tuple[int, int, int] | None = (2, 10, 2)
    """Heads, their width, layers."""
    prior_clip: float = 5.0
    has_image_encoder: bool = False
    channels: tuple[int, ...] = (8, 16)
    layers: int | tuple[int, ...] = 1
    head: int = 4
    groups: int = 2
    attends: tuple[bool, ...] = (False, True)
    context_width: int = 10
    tokens: int = 4
    size: int = 8
    time_norm: str = "scale_shift"
    super_res: tuple[str, ...] = ("first", "last")
    super_res_channels: tuple[int, ...] = (4, 8)
    super_res_layers: int = 1
    super_res_time_norm: str = "default"

    @property
    def tokenizer(self) -> Tokenizer:
        """It reads captions of `context` tokens."""
        return train_bpe(
            ["a red apple", "a green apple", "two green hearts"] * 3, 530, self.context
        )


def make_folder(tiny: Tiny, folder: Path, *, scheduler_of_prior: str = "prior_scheduler") -> Path:
    """Write diffusers' layout, every parameter random."""
    diffusers = live("diffusers")
    import torch
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(tiny.seed)

    def save(name: str, module: Any) -> None:
        randomise(module).save_pretrained(folder / name)

    text = CLIPTextConfig(
        vocab_size=tiny.tokenizer.vocab_size,
        hidden_size=tiny.embedding,
        intermediate_size=3 * tiny.embedding,
        num_hidden_layers=2,
        num_attention_heads=tiny.text_heads,
        max_position_embeddings=tiny.context,
        projection_dim=tiny.embedding,
        hidden_act="quick_gelu",
        eos_token_id=2,
    )
    save("text_encoder", CLIPTextModelWithProjection(text))
    (folder / "tokenizer").mkdir()
    write_tokenizer(tiny.tokenizer, folder / "tokenizer")
    if tiny.has_image_encoder:
        save("image_encoder", _image_encoder(tiny))
        _write_preprocessor(folder / "feature_extractor", 14)
    if tiny.prior is not None:
        save("prior", prior_transformer(tiny))
        _write_scheduler(folder / scheduler_of_prior, "sample", "fixed_small_log", tiny.prior_clip)
    decoder = diffusers.UNet2DConditionModel(
        sample_size=tiny.size,
        in_channels=3,
        out_channels=6,
        block_out_channels=tiny.channels,
        layers_per_block=tiny.layers,
        down_block_types=tuple(
            "SimpleCrossAttnDownBlock2D" if does else "ResnetDownsampleBlock2D"
            for does in tiny.attends
        ),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=tuple(
            "SimpleCrossAttnUpBlock2D" if does else "ResnetUpsampleBlock2D"
            for does in reversed(tiny.attends)
        ),
        resnet_time_scale_shift=tiny.time_norm,
        cross_attention_dim=tiny.context_width,
        attention_head_dim=tiny.head,
        norm_num_groups=tiny.groups,
        class_embed_type="identity",
    )
    save("decoder", decoder)
    projection = UnCLIPTextProjModel(
        clip_extra_context_tokens=tiny.tokens,
        clip_embeddings_dim=tiny.embedding,
        time_embed_dim=4 * tiny.channels[0],
        cross_attention_dim=tiny.context_width,
    )
    save("text_proj", projection)
    _write_scheduler(folder / "decoder_scheduler", "epsilon", "learned_range", 1.0)
    for part in tiny.super_res:
        levels = len(tiny.super_res_channels)
        unet = diffusers.UNet2DModel(
            sample_size=4 * tiny.size,
            in_channels=6,
            out_channels=3,
            block_out_channels=tiny.super_res_channels,
            layers_per_block=tiny.super_res_layers,
            down_block_types=("ResnetDownsampleBlock2D",) * levels,
            up_block_types=("ResnetUpsampleBlock2D",) * levels,
            resnet_time_scale_shift=tiny.super_res_time_norm,
            norm_num_groups=tiny.groups,
            add_attention=False,
        )
        save(f"super_res_{part}", unet)
        _write_scheduler(folder / "super_res_scheduler", "epsilon", "fixed_small_log", 1.0)
    return folder


def prior_transformer(tiny: Tiny) -> Any:
    """diffusers' prior, not random yet."""
    diffusers = live("diffusers")
    assert tiny.prior is not None
    heads, width, layers = tiny.prior
    return diffusers.PriorTransformer(
        num_attention_heads=heads,
        attention_head_dim=width,
        num_layers=layers,
        embedding_dim=tiny.embedding,
        num_embeddings=tiny.context,
    )


def randomise(module: Any) -> Any:
    """Every parameter random, none without influence, none that makes states explode."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            is_gain = "norm" in name and name.endswith("weight")
            if name.endswith("clip_std"):
                parameter.copy_(noise.abs() + 0.5)
            elif is_gain:
                parameter.copy_(1 + 0.2 * noise)
            elif "embedding" in name and parameter.ndim != 1 and "proj" not in name:
                parameter.copy_(0.5 * noise)
            elif parameter.ndim > 1 and name != "clip_mean":
                parameter.copy_(0.8 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return module.eval()


def edit_tensor(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one tensor of a safetensors file in place."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(path)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    save_file(arrays, path, {"format": "pt"})


def tensor_names(path: Path) -> list[str]:
    """Names in a safetensors file, sorted."""
    from safetensors.numpy import load_file

    return sorted(load_file(path))


def weights_of(component: Path) -> Path:
    """The file of weights of a component."""
    return next(component.glob("*.safetensors"))


def _image_encoder(tiny: Tiny) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=18,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=14,
        patch_size=7,
        projection_dim=tiny.embedding,
        hidden_act="quick_gelu",
    )
    return CLIPVisionModelWithProjection(config)


def _write_scheduler(folder: Path, prediction: str, variance: str, limit: float) -> None:
    diffusers = live("diffusers")
    diffusers.UnCLIPScheduler(
        prediction_type=prediction, variance_type=variance, clip_sample_range=limit
    ).save_pretrained(folder)


def _write_preprocessor(folder: Path, size: int) -> None:
    folder.mkdir()
    data = {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(data), encoding="utf-8")
