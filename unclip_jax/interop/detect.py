"""Which of the known formats a file or folder is, by what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from unclip_jax.bounded import read_json
from unclip_jax.errors import UserError
from unclip_jax.files import missing
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensors

Format = Literal["karlo", "clip", "noised_clip", "glide", "adm", "dalle2_prior", "dalle2_decoder"]
FORMATS: dict[Format, str] = {
    "karlo": "Karlo or a Kandinsky prior: diffusers' folder, or a folder of the original files",
    "clip": "CLIP of OpenAI, Hugging Face or OpenCLIP",
    "noised_clip": "GLIDE's noised CLIP: a folder with its image and its text file",
    "glide": "GLIDE: base, upsample, and their inpainting variants",
    "adm": "ADM: diffusion models, upsamplers, classifiers",
    "dalle2_prior": "DALLE2-pytorch's diffusion prior",
    "dalle2_decoder": "DALLE2-pytorch's decoder",
}
_COMPONENTS = ("PriorTransformer", "UNet2DConditionModel", "UNet2DModel", "UnCLIPTextProjModel")
_CLIP_FILES = ("open_clip_config.json",)
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".th", ".bin")


def detect(path: Path) -> Format:
    """The format of `path`.

    Raises:
        UserError: nothing there, or nothing that is known.
    """
    if not path.exists():
        raise UserError(f"{path} {missing(path)}")
    if path.is_dir():
        found = _folder(path)
    else:
        found = _file(open_file(path).tensors)
    if found is None:
        raise UserError(
            f"{path} is no checkpoint that is known here: {'; '.join(FORMATS.values())}. Name it "
            "with --format if it is one of them"
        )
    return found


def _folder(path: Path) -> Format | None:
    if (path / "text_encoder").is_dir() and any(
        (path / name).is_dir() for name in ("prior", "decoder", "super_res_first")
    ):
        return "karlo"
    config = _config(path)
    if any((path / name).is_file() for name in _CLIP_FILES):
        return "clip"
    if str(config.get("model_type", "")).startswith("clip"):
        return "clip"
    if config.get("_class_name") in _COMPONENTS:
        raise UserError(
            f"{path} is one component ({config['_class_name']}) of a model in diffusers' layout: "
            "name the folder above it, and with --stages what of it is wanted"
        )
    kinds = set()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name.endswith(_WEIGHTS):
            kind = _file(open_file(file).tensors)
            if kind is not None:
                kinds.add(kind)
    kinds = kinds - {"clip"} or kinds  # a CLIP may lie beside what it belongs to
    return kinds.pop() if len(kinds) == 1 else None


def _file(tensors: Tensors) -> Format | None:
    """By names that only one format has, whatever stands before them."""
    names = list(tensors)

    def has(*endings: str) -> bool:
        return any(name.endswith(endings) for name in names)

    if has("causal_transformer.rel_pos_bias.relative_attention_bias.weight"):
        return "dalle2_prior"
    if any(name.startswith(("unets.", "model.unets.")) for name in names) or has(
        "to_time_hiddens.1.weight"
    ):
        return "dalle2_decoder"
    if has("prd_emb", "cf_param") or any(name.find("model_first_steps.") >= 0 for name in names):
        return "karlo"
    if has(".w_t", ".w_voc"):
        return "noised_clip"
    if has("transformer_proj.weight") and has("padding_embedding"):
        return "glide"
    if has("input_blocks.0.0.weight"):
        return "adm"
    if has("visual.conv1.weight", "vision_model.embeddings.class_embedding"):
        return "clip"
    return None


def _config(path: Path) -> dict[str, Any]:
    """Its config.json; empty if it has none that can be read."""
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
