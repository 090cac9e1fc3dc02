"""A CLIP of ours as others load it: a folder for transformers, a state dict for OpenAI's code, a
state dict or a folder for OpenCLIP.

Each of them fixes something that is an option here. What does not fit is refused by name: a file
that loads elsewhere and computes something else would be worse than none.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.interop.clip_keys import hf_key_map, openai_key_map
from unclip_jax.interop.clip_state_dict import OPENAI_HEAD_WIDTH
from unclip_jax.interop.safetensors_file import write_safetensors
from unclip_jax.interop.tensors import Tensors, read_all
from unclip_jax.interop.tokenizer_files import TOKENIZER_FILES, write_tokenizer
from unclip_jax.interop.transfer import export_tensors
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.layers import EPSILON
from unclip_jax.models.transformer import TransformerConfig

_HF_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", *TOKENIZER_FILES)
_OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
_ARGMAX = 2
"""Hugging Face's `eos_token_id` for "read the caption at the largest id"."""


def export_hf_clip(
    config: CLIPConfig,
    params: Any,
    tokenizer: Tokenizer | None,
    folder: Path,
    *,
    drop_logit_bias: bool = False,
) -> None:
    """Write a `CLIPModel` for transformers; of a text encoder, a `CLIPTextModelWithProjection`.

    Args:
        params: tree of float32 arrays.
        tokenizer: None writes no vocabulary.
        folder: new, or one that an export wrote before.
        drop_logit_bias: leave out the bias of the sigmoid loss, which transformers' CLIP has not:
            embeddings are the same, logits lack it.
    Raises:
        UserError: the model does not fit, or the folder holds other files.
    """
    _check_norms(config, "transformers")
    if config.has_logit_bias and not drop_logit_bias:
        raise UserError(
            "transformers' CLIP has no bias on its logits and this model has one (logit_bias): set "
            "drop_logit_bias to export it without; embeddings stay the same, logits do not"
        )
    _prepare(folder, _HF_FILES)
    tensors = export_tensors(hf_key_map(config), params)
    tensors.pop("logit_bias", None)
    if config.vision is None:
        tensors.pop("logit_scale")
    _save(tensors, folder / "model.safetensors")
    _write_json(folder / "config.json", _hf_config(config, tokenizer))
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder)
    if config.vision is not None:
        _write_json(folder / "preprocessor_config.json", _hf_preprocessor(config))


def export_openai_state(config: CLIPConfig, params: Any) -> Tensors:
    """The state dict of OpenAI's `CLIP`, which reads every size from it.

    Raises:
        UserError: OpenAI's code would compute something else: it has quick GELU, heads of 64, MLPs
            of four times the width and epsilons of 1e-5.
    """
    _check_norms(config, "OpenAI's CLIP")
    for name, tower in (("vision", config.image_tower), ("text", config.text)):
        misfits = (
            (tower.activation != "quick_gelu", f"activation {tower.activation}, not quick_gelu"),
            (tower.width != OPENAI_HEAD_WIDTH * tower.heads, f"heads {tower.heads}, not of 64"),
            (_hidden(tower) != 4 * tower.width, f"mlp_width {tower.mlp_width}, not 4 * width"),
            (tower.norm_epsilon != EPSILON, f"norm_epsilon {tower.norm_epsilon}, not {EPSILON}"),
        )
        for is_misfit, what in misfits:
            if is_misfit:
                raise UserError(
                    f"OpenAI's CLIP cannot hold this model: {name}.{what}; export it for "
                    "transformers or OpenCLIP"
                )
    if config.has_logit_bias or config.end_of_text is not None:
        field = "logit_bias" if config.has_logit_bias else "end_of_text"
        raise UserError(f"OpenAI's CLIP has no {field}: export the model for OpenCLIP")
    return export_tensors(openai_key_map(config), params)


def export_open_clip_state(config: CLIPConfig, params: Any) -> Tensors:
    """The state dict of OpenCLIP's `CLIP(**open_clip_model_config(config))`, to load strictly.

    Raises:
        UserError: as `open_clip_model_config`.
    """
    open_clip_model_config(config)  # its checks
    return export_tensors(openai_key_map(config), params)


def open_clip_model_config(config: CLIPConfig) -> dict[str, Any]:
    """What OpenCLIP calls `model_cfg`.

    Raises:
        UserError: OpenCLIP has one activation for both towers, one epsilon in each, and always an
            image encoder.
    """
    _check_norms(config, "OpenCLIP")
    vision, text = config.image_tower, config.text
    if vision.activation != text.activation:
        raise UserError(
            f"OpenCLIP has one activation and this model two ({vision.activation} for pictures, "
            f"{text.activation} for text): export it for transformers"
        )
    vision_cfg = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": vision.depth,
        "width": vision.width,
        "head_width": vision.width // vision.heads,
        "mlp_ratio": _mlp_ratio(vision),
    }
    text_cfg = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "layers": text.depth,
        "width": text.width,
        "heads": text.heads,
        "mlp_ratio": _mlp_ratio(text),
    }
    for part, tower in ((vision_cfg, vision), (text_cfg, text)):
        if tower.norm_epsilon != EPSILON:
            part["norm_kwargs"] = {"eps": tower.norm_epsilon}
    if config.end_of_text is not None:
        text_cfg |= {"pool_type": "eos", "eos_id": config.end_of_text}
    model = {
        "embed_dim": config.embedding_width,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }
    return model | ({"init_logit_bias": config.initial_logit_bias} if config.has_logit_bias else {})


def export_open_clip(config: CLIPConfig, params: Any, folder: Path) -> None:
    """Write the folder that OpenCLIP loads as 'local-dir:FOLDER'.

    Its tokenizer is CLIP's; a model with another vocabulary takes the ids of that one.

    Raises:
        UserError: as `open_clip_model_config`, or the folder holds other files.
    """
    model = open_clip_model_config(config)
    _prepare(folder, _OPEN_CLIP_FILES)
    _save(export_tensors(openai_key_map(config), params), folder / _OPEN_CLIP_FILES[1])
    pictures = {"mean": list(config.image_mean), "std": list(config.image_std)}
    _write_json(folder / _OPEN_CLIP_FILES[0], {"model_cfg": model, "preprocess_cfg": pictures})


def _hf_config(config: CLIPConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    end_of_text = config.end_of_text
    if end_of_text is None:
        end_of_text = _ARGMAX if tokenizer is None else tokenizer.eot_id
    ids = {"eos_token_id": end_of_text}
    if tokenizer is not None:
        ids |= {"bos_token_id": tokenizer.sot_id, "pad_token_id": tokenizer.eot_id}
    text = {
        **_hf_tower(config.text, config.embedding_width),
        **ids,
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
    }
    if config.vision is None:
        return {"architectures": ["CLIPTextModelWithProjection"], **text}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embedding_width,
        "logit_scale_init_value": config.initial_logit_scale,
        "text_config": text,
        "vision_config": {
            **_hf_tower(config.vision, config.embedding_width),
            "model_type": "clip_vision_model",
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "num_channels": 3,
        },
    }


def _hf_tower(tower: TransformerConfig, projection: int) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": _hidden(tower),
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.norm_epsilon,
        "projection_dim": projection,
        "attention_dropout": 0.0,
    }


def _hf_preprocessor(config: CLIPConfig) -> dict[str, Any]:
    size = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def _check_norms(config: CLIPConfig, whose: str) -> None:
    """UserError where a tower has one epsilon in its blocks and another around them."""
    outer = config.norm_epsilon
    text = outer if config.text_norm_epsilon is None else config.text_norm_epsilon
    pairs = [("text", config.text.norm_epsilon, text)]
    if config.vision is not None:
        pairs.append(("vision", config.vision.norm_epsilon, outer))
    for name, inner, around in pairs:
        if inner != around:
            raise UserError(
                f"{whose} has one epsilon for the norms of a tower and this model's {name} two "
                f"({inner} in the blocks, {around} around them): it cannot be exported there"
            )


def _hidden(tower: TransformerConfig) -> int:
    return tower.mlp_width or 4 * tower.width


def _mlp_ratio(tower: TransformerConfig) -> float:
    """A ratio r with int(width * r) equal to the MLP's width, which is how OpenCLIP reads it."""
    ratio = _hidden(tower) / tower.width
    while int(tower.width * ratio) < _hidden(tower):
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _prepare(folder: Path, names: tuple[str, ...]) -> None:
    """Make the folder; UserError if it holds files of something else."""
    entries = folder.iterdir() if folder.is_dir() else ()
    foreign = sorted(entry.name for entry in entries if entry.name not in names)
    if foreign:
        raise UserError(f"{folder} holds other files ({foreign[0]}): export into a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def _save(tensors: Tensors, path: Path) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    # Older versions of transformers refuse a file that does not name its format.
    metadata = {"format": "pt"}
    write_safetensors(path, shapes, read_all(tensors), np.dtype(np.float32), metadata=metadata)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())
