"""A CLIP by the package it comes from, recorded as a trace.

A folder with Hugging Face's config runs in transformers, one with OpenCLIP's in open_clip. OpenAI's
archive runs in open_clip too, which shows its blocks, or, where that is missing, as the TorchScript
that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.comparison.traced import Progress, from_torch, to_torch, watch_outputs
from unclip_jax.interop.open_file import find_weights, open_file

_HF_LAYER = re.compile(r"(?:(text|vision)_model\.)?encoder\.layers\.(\d+)")


def record_clip(
    path: Path, model: str | None, given: dict[str, np.ndarray], progress: Progress
) -> Trace:
    """Blocks, states, embeddings and logits.

    Args:
        path: as `find_clip` takes it.
        model: what a bare state dict is, by OpenCLIP's name.
        given: `text/tokens`, `image/pixels` unless there are no pictures, and the mean and
            deviation that the encoder expects.
    Returns:
        A trace with what was given and, by tower, `block/0`, `states` of the text and `embedding`,
        not normalised; `logits` [pictures, texts].
    Raises:
        UserError: the package that is needed is not installed.
    """
    _require("torch")
    if (path / "open_clip_config.json").is_file() and not (path / "config.json").is_file():
        run, name = _open_clip_folder, "open_clip_torch"
    elif path.is_dir():
        run, name = _transformers, "transformers"
    else:
        run, name = _file, "open_clip_torch"
    progress(name)
    import torch

    arrays = dict(given)
    with torch.no_grad():
        used = run(path, model, arrays)
    return Trace("clip", {"reference": used}, arrays)


def _transformers(path: Path, _: str | None, arrays: dict[str, np.ndarray]) -> str:
    transformers = _require("transformers")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    options: dict[str, Any] = {}
    if find_weights(path).name == "model.fp16.safetensors":
        options["variant"] = "fp16"
    has_pictures = "image/pixels" in arrays
    name = "CLIPModel" if has_pictures else "CLIPTextModelWithProjection"
    if config.get("model_type") == "clip_text_model" and not _has_projection(path):
        name = "CLIPTextModel"
    model = getattr(transformers, name).from_pretrained(path, **options).eval().float()
    names, last = {}, {"final_layer_norm": "text/states", "text_projection": "text/embedding"}
    if has_pictures:
        last["visual_projection"] = "image/embedding"
    for module, _submodule in model.named_modules():
        if match := _HF_LAYER.fullmatch(module):
            tower = "image" if match[1] == "vision" else "text"
            names[module] = f"{tower}/block/{match[2]}"
        elif module.rpartition(".")[2] in last:
            names[module] = last[module.rpartition(".")[2]]
    stop = watch_outputs(model, names, arrays)
    tokens = to_torch(arrays["text/tokens"])
    if has_pictures:
        out = model(input_ids=tokens, pixel_values=_pixels(arrays))
        arrays["logits"] = from_torch(out.logits_per_image)
    else:
        out = model(input_ids=tokens)
    stop()
    if name == "CLIPTextModel":
        arrays["text/embedding"] = from_torch(out.pooler_output)
    return f"{name} of transformers {version('transformers')}"


def _has_projection(path: Path) -> bool:
    return "text_projection.weight" in open_file(path).tensors


def _open_clip_folder(path: Path, _: str | None, arrays: dict[str, np.ndarray]) -> str:
    open_clip = _require("open_clip")
    config = json.loads((path / "open_clip_config.json").read_text(encoding="utf-8"))
    config = dict(config.get("model_cfg", config))
    is_custom = bool(config.pop("custom_text", False))
    kind = open_clip.model.CustomTextCLIP if is_custom else open_clip.model.CLIP
    model = kind(**config)
    model.load_state_dict(_weights(find_weights(path)))
    return _open_clip(open_clip, model, arrays)


def _file(path: Path, name: str | None, arrays: dict[str, np.ndarray]) -> str:
    """OpenAI's archive, or a state dict whose model is named."""
    try:
        open_clip = _require("open_clip")
    except UserError:
        if name not in (None, "openai"):
            raise
        return _torch_script(path, arrays)
    if name in (None, "openai"):
        state = _archive_weights(path)
        weights = dict(state)  # which the next line shortens and rounds
        model = open_clip.model.build_model_from_openai_state_dict(state).float()
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        return _open_clip(open_clip, model, arrays)
    model = open_clip.create_model(name)
    state = _weights(path)
    state = state.get("state_dict", state)
    model.load_state_dict({key.removeprefix("module."): x for key, x in state.items()})
    return _open_clip(open_clip, model, arrays)


def _open_clip(open_clip: Any, model: Any, arrays: dict[str, np.ndarray]) -> str:
    model = model.float().eval()
    prefix = "text." if hasattr(model, "text") else ""
    towers = {
        "text": (f"{prefix}transformer", model.get_submodule(f"{prefix}transformer")),
        "image": ("visual.transformer", model.visual.transformer),
    }
    found: dict[str, np.ndarray] = {}
    names = {f"{prefix}ln_final": "text/states"}
    for tower, (place, transformer) in towers.items():
        for i in range(len(transformer.resblocks)):
            names[f"{place}.resblocks.{i}"] = f"{tower}/block/{i}"
    stop = watch_outputs(model, names, found)
    image = model.encode_image(_pixels(arrays))
    text = model.encode_text(to_torch(arrays["text/tokens"]))
    stop()
    for tower, (_, transformer) in towers.items():
        if not getattr(transformer, "batch_first", False):  # older ones put the tokens first
            for i in range(len(transformer.resblocks)):
                found[f"{tower}/block/{i}"] = found[f"{tower}/block/{i}"].swapaxes(0, 1)
    arrays |= found | {"image/embedding": from_torch(image), "text/embedding": from_torch(text)}
    bias = getattr(model, "logit_bias", None)
    arrays["logits"] = _logits(image, text, model.logit_scale, bias)
    return f"{type(model).__name__} of open_clip_torch {version('open_clip_torch')}"


def _torch_script(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """The archive by itself, whose states cannot be seen; its half precision is kept."""
    import torch

    model: Any = torch.jit.load(path, map_location="cpu").eval()
    dtype = model.visual.conv1.weight.dtype
    if dtype != torch.float32:
        raise UserError(
            f"{path} computes in half precision, which says little: pip install open_clip_torch"
        )
    image = model.encode_image(_pixels(arrays))
    text = model.encode_text(to_torch(arrays["text/tokens"]))
    arrays |= {"image/embedding": from_torch(image), "text/embedding": from_torch(text)}
    arrays["logits"] = _logits(image, text, model.logit_scale, None)
    return "the archive's TorchScript"


def _logits(image: Any, text: Any, scale: Any, bias: Any) -> np.ndarray:
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    logits = scale.exp() * image @ text.T
    return from_torch(logits if bias is None else logits + bias)


def _pixels(arrays: dict[str, np.ndarray]) -> Any:
    """[B, 3, S, S] with CLIP's mean and deviation, from [-1, 1]."""
    pixels = (arrays["image/pixels"].astype(np.float64) + 1) / 2
    pixels = (pixels - arrays["image/mean"]) / arrays["image/std"]
    return to_torch(pixels.astype(np.float32))


def _weights(path: Path) -> Mapping[str, Any]:
    """By the libraries of the reference, not by ours."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _archive_weights(path: Path) -> dict[str, Any]:
    import torch

    try:
        weights = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:  # a state dict, not a TorchScript
        weights = _weights(path)
    # The mask is made anew; some archives keep it beside the weights.
    return {name: tensor.float() for name, tensor in weights.items() if name != "attn_mask"}


def _require(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    # A package that was built for another torch fails with RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"the reference cannot run here ({' '.join(str(error).split())}): pip install "
            "'unclip_jax[reference]', or give a trace that was recorded elsewhere with --trace"
        ) from error
