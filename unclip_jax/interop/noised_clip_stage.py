"""GLIDE's noised CLIP as the stage that steers a decoder."""

from __future__ import annotations

from pathlib import Path

from unclip_jax.config import DataConfig
from unclip_jax.data.tokenizer import TokenizerConfig, clip_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.interop.glide_clip import NoisedCLIPOptions, load_noised_clip
from unclip_jax.interop.open_file import open_file
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.weights import Stage, weights_id

_ENDINGS = (".pt", ".pth", ".bin", ".safetensors")


def noised_clip_stage(
    folder: Path, vision_heads: int | None = None, text_heads: int | None = None
) -> Stage:
    """A stage named `noised_clip` from the folder with its image and its text file.

    Args:
        vision_heads, text_heads: None is one for 64 channels, as published.
    Raises:
        UserError: one of the files is missing, or does not fit.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: name the folder with the image and the text file")
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS)):
        names = open_file(path).tensors
        for kind, mark in (("image", ".w_t"), ("text", ".w_voc")):
            if any(name.endswith(mark) for name in names):
                files[kind] = path
    if set(files) != {"image", "text"}:
        raise UserError(f"{folder} needs the image and the text file of a noised CLIP")
    options = NoisedCLIPOptions(vision_heads, text_heads)
    config, params = load_noised_clip(files["image"], files["text"], options)
    tokenizer = clip_tokenizer(config.clip.context_length)
    recipe = NoisedCLIPRecipe(
        model=config,
        tokenizer=TokenizerConfig("clip", tokenizer.vocab_size, tokenizer.context_length),
        data=DataConfig(image_size=config.clip.image_size),
    )
    return Stage(recipe, params, tokenizer, 0, weights_id(params))
