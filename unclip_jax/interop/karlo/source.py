"""Karlo or Kandinsky in either layout."""

from __future__ import annotations

from pathlib import Path

from unclip_jax.errors import UserError
from unclip_jax.interop.foreign_stage import ForeignModel
from unclip_jax.interop.infer_unet import HeadOptions
from unclip_jax.interop.karlo.configs import Coefficients
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.karlo.original_files import Hyperparameters, open_original_files


def open_karlo(
    folder: Path,
    *,
    clip: Path | None = None,
    tokenizer: Path | None = None,
    coefficients: Coefficients = "original",
    prior_heads: int | None = None,
    heads: HeadOptions = HeadOptions(),
    image_size: int | None = None,
) -> ForeignModel:
    """A folder in diffusers' layout, or one with the original files.

    Args:
        tokenizer: folder of the vocabulary, if neither beside the weights nor OpenAI's.
        clip, prior_heads, heads, image_size: what original files do not tell; a diffusers folder
            tells them itself.
    Raises:
        UserError: options that are not needed, or a folder that is neither.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: Karlo is a folder, of diffusers' or with its files")
    if not (folder / "text_encoder").is_dir():
        given = Hyperparameters(prior_heads, heads, image_size or 64)
        return open_original_files(folder, clip, coefficients, given, tokenizer)
    if (clip, prior_heads, heads, image_size) != (None, None, HeadOptions(), None):
        raise UserError(
            f"{folder} is a folder of diffusers', whose configs tell CLIP, heads and sizes: leave "
            "these options out"
        )
    return open_diffusers_folder(folder, coefficients, tokenizer)
