"""CLIPs from elsewhere: OpenAI's archives, Hugging Face's folders, OpenCLIP's files and folders.

What is read: a folder with config.json (`CLIPModel`, or a `CLIPTextModel` with or without its
projection, beside which a `CLIPVisionModelWithProjection` may be given), a folder with
open_clip_config.json, or a file with a state dict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.bounded import read_json
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError
from unclip_jax.interop.clip_config import hf_config, hf_tower_config
from unclip_jax.interop.clip_keys import HF_IGNORED, OPENAI_IGNORED, hf_key_map, openai_key_map
from unclip_jax.interop.clip_state_dict import (
    StateDictOptions,
    has_clip_tokenizer,
    open_clip_config,
    state_dict_config,
)
from unclip_jax.interop.key_map import KeyMap
from unclip_jax.interop.layouts import Squeezed
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensors, from_arrays, without_prefix
from unclip_jax.interop.tokenizer_files import find_tokenizer
from unclip_jax.interop.transfer import import_params
from unclip_jax.models.clip import CLIP, CLIPConfig

_HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "model.fp16.safetensors",
)
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_WRAPPERS = ("state_dict.", "module.")
"""What training checkpoints put before every name."""


@dataclass(frozen=True, eq=False)
class ForeignCLIP:
    """A CLIP that was recognised and not read yet."""

    config: CLIPConfig
    key_map: KeyMap
    tensors: Tensors
    what: str
    """How messages call it."""
    ignored: tuple[str, ...]
    """Regular expressions of names that mean nothing here."""
    tokenizer: Tokenizer | None
    """None where the vocabulary is not CLIP's and no file says what it is."""

    def load(self) -> Any:
        """Its parameters, float32; UserError if names or shapes do not fit."""
        abstract = abstract_params(self.config)
        return import_params(
            self.key_map, self.tensors, abstract, what=self.what, ignored=self.ignored
        )


@dataclass(frozen=True, eq=False)
class ImportedCLIP:
    """A CLIP of ours with somebody else's weights."""

    config: CLIPConfig
    params: Any
    """Tree of float32 arrays for `CLIP(config)`."""
    tokenizer: Tokenizer | None
    """As `ForeignCLIP.tokenizer`."""


def import_clip(
    path: Path,
    *,
    image_encoder: Path | None = None,
    tokenizer: Path | None = None,
    preprocessor: Path | None = None,
    options: StateDictOptions = StateDictOptions(),
) -> ImportedCLIP:
    """Read a CLIP; the arguments are those of `find_clip`."""
    found = find_clip(
        path,
        image_encoder=image_encoder,
        tokenizer=tokenizer,
        preprocessor=preprocessor,
        options=options,
    )
    return ImportedCLIP(found.config, found.load(), found.tokenizer)


def find_clip(
    path: Path,
    *,
    image_encoder: Path | None = None,
    tokenizer: Path | None = None,
    preprocessor: Path | None = None,
    options: StateDictOptions = StateDictOptions(),
) -> ForeignCLIP:
    """Recognise a CLIP and check that its file fits, without reading the weights.

    Args:
        path: a folder or a file, see above.
        image_encoder: folder of the `CLIPVisionModelWithProjection` that belongs to a text encoder.
        tokenizer: folder of its vocabulary, if that is not `path`.
        preprocessor: folder of its preprocessor_config.json, if that is not `path`.
        options: what a bare state dict does not tell. Folders tell it themselves.
    Raises:
        UserError: not a CLIP, one that this package cannot compute, or options that are missing or
            not needed.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name a CLIP's folder or file")
    if path.is_file():
        return _from_state_dict(path, tokenizer, options)
    if options != StateDictOptions():
        raise UserError(f"{path} is a folder, whose config tells the model: give no options")
    pictures = preprocessor or path
    if _first(path, _HF_WEIGHTS) and (path / "config.json").is_file():
        return _from_hf(path, image_encoder, tokenizer or path, pictures)
    if (path / "open_clip_config.json").is_file():
        return _from_open_clip(path, tokenizer or path)
    raise UserError(
        f"{path} holds neither config.json with {' or '.join(_HF_WEIGHTS[:3])} nor "
        "open_clip_config.json: name a CLIP's folder, or the file with its state dict"
    )


def abstract_params(config: CLIPConfig) -> Any:
    """Shapes of the parameters of `CLIP(config)`."""
    size = config.image_size
    images = None if config.vision is None else jnp.zeros((1, size, size, 3))
    tokens = jnp.zeros((1, config.context_length), jnp.int32)
    return jax.eval_shape(lambda: CLIP(config).init(jax.random.key(0), images, tokens)["params"])


def _from_state_dict(path: Path, tokenizer: Path | None, options: StateDictOptions) -> ForeignCLIP:
    tensors = open_file(path).tensors
    for prefix in _WRAPPERS:
        tensors = without_prefix(tensors, prefix) or tensors
    config = state_dict_config(tensors, options, str(path))
    return _openai_layout(config, tensors, str(path), find_tokenizer(tokenizer, config))


def _from_open_clip(path: Path, tokenizer: Path) -> ForeignCLIP:
    where = path / "open_clip_config.json"
    data = _read_json(where)
    config = open_clip_config(data, str(where))
    found = find_tokenizer(tokenizer, config, is_clips=has_clip_tokenizer(data))
    weights = _first(path, _OPEN_CLIP_WEIGHTS)
    if weights is None:
        raise UserError(f"{path} has none of {', '.join(_OPEN_CLIP_WEIGHTS)}: restore the file")
    tensors = open_file(weights).tensors
    return _openai_layout(config, tensors, str(weights), found)


def _openai_layout(
    config: CLIPConfig, tensors: Tensors, what: str, tokenizer: Tokenizer | None
) -> ForeignCLIP:
    text = "text." if "text.positional_embedding" in tensors else ""
    key_map = openai_key_map(config, text)
    for name in ("logit_scale", "logit_bias"):  # OpenCLIP can keep them as [1]
        if name in tensors and tensors[name].shape == (1,):
            key_map = [
                replace(entry, layout=Squeezed((0,))) if entry.target == name else entry
                for entry in key_map
            ]
    return ForeignCLIP(config, key_map, tensors, what, OPENAI_IGNORED, tokenizer)


def _from_hf(
    path: Path, image_encoder: Path | None, tokenizer: Path, preprocessor: Path
) -> ForeignCLIP:
    where = str(path / "config.json")
    data, pictures = _read_json(path / "config.json"), _preprocessor(preprocessor)
    kind = data.get("model_type")
    tensors = _hf_tensors(path)
    if kind == "clip" and any(name.startswith("vision_model.") for name in tensors):
        config = hf_config(data, pictures, where)
    elif kind in ("clip", "clip_text_model"):
        config, tensors = _hf_towers(data, tensors, image_encoder, pictures, where)
    elif kind == "clip_vision_model":
        raise UserError(
            f"{path} is an image encoder alone: name the folder above it, which has its text "
            "encoder too"
        )
    else:
        raise UserError(f"{where} has model_type {kind!r}, not clip: name a CLIP's folder")
    found = find_tokenizer(tokenizer, config)
    return ForeignCLIP(config, hf_key_map(config), tensors, str(path), HF_IGNORED, found)


def _hf_towers(
    data: dict[str, Any],
    tensors: Tensors,
    image_encoder: Path | None,
    pictures: dict[str, Any] | None,
    where: str,
) -> tuple[CLIPConfig, Tensors]:
    """Config and tensors of towers that were saved alone, as those of a whole `CLIPModel`."""
    if not any(name.startswith("text_model.") for name in tensors):  # transformers 5 leaves it out
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    # What the config says is missing where the tensor is; older configs do not say it.
    has_projection = "text_projection.weight" in tensors or any(
        str(name).endswith("WithProjection") for name in data.get("architectures") or ()
    )
    vision = None
    if image_encoder is not None:
        vision = _read_json(image_encoder / "config.json")
        if vision.get("model_type") != "clip_vision_model":
            raise UserError(f"{image_encoder} is not CLIP's image encoder: name another folder")
        tensors = tensors | _hf_tensors(image_encoder)
    config = hf_tower_config(data, vision, pictures, where, has_projection=has_projection)
    # The temperature is not in such files. A text encoder without a projection gives its state
    # itself.
    absent = {"logit_scale": np.asarray(config.initial_logit_scale, np.float32)}
    if not has_projection:
        absent["text_projection.weight"] = np.eye(config.embedding_width, dtype=np.float32)
    return config, tensors | from_arrays(absent)


def _hf_tensors(folder: Path) -> Tensors:
    weights = _first(folder, _HF_WEIGHTS)
    if weights is None:
        raise UserError(f"{folder} has none of {', '.join(_HF_WEIGHTS)}: restore the file")
    return open_file(weights).tensors


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _preprocessor(folder: Path) -> dict[str, Any] | None:
    path = folder / "preprocessor_config.json"
    return _read_json(path) if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold an object: restore the file")
    return value
