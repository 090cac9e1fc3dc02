"""unclip fit-codes CLIP --out FILE: the codes that an autoregressive prior writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unclip_jax.cli.overrides import parse
from unclip_jax.config import DataConfig
from unclip_jax.errors import UserError


@dataclass(frozen=True)
class FitOptions:
    """PCA and buckets of a CLIP's image embeddings, from two passes over a data set.

    `train.py configs/.../ar_prior.py --codes FILE` reads the file; without it the run fits its own.
    """

    clip: str
    """The CLIP: a run folder, an exported folder, or a shipped model's name."""
    out: str = "codes.safetensors"
    """File for the codes."""
    data: DataConfig = DataConfig()
    """The pictures, or their stored embeddings; give the --data options of the recipe."""
    components: int | None = None
    """Principal components that are kept; None takes as few as --max-error allows."""
    max_error: float = 0.01
    """Largest mean squared error of the reconstruction, as a share of the mean square."""
    buckets: int = 1024
    """Codes of a component."""
    dot_buckets: int = 1024
    """Tokens of the dot product."""
    centered: bool = False
    """Subtract the mean embedding first."""


def main(arguments: Sequence[str]) -> int:
    """Writes the file; returns the exit code."""
    options = parse(FitOptions, arguments, default=None, program="unclip fit-codes")
    out = Path(options.out).expanduser()
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.models.embedding_codes import CodeConfig
    from unclip_jax.training.codes import fit_codes_on_data, save_codes
    from unclip_jax.training.encoded_pairs import open_pairs
    from unclip_jax.training.recipes.clip import CLIPRecipe
    from unclip_jax.training.weights import load_clip

    config = CodeConfig(
        components=options.components,
        max_error=options.max_error,
        buckets=options.buckets,
        dot_buckets=options.dot_buckets,
        centered=options.centered,
    )
    clip = load_clip(options.clip)
    if not isinstance(clip.recipe, CLIPRecipe):
        raise UserError(f"{options.clip} is not a CLIP: name the run or folder of one")
    assert clip.tokenizer is not None
    source = open_pairs(options.data, clip.clip_id, clip.tokenizer)
    codes = fit_codes_on_data(
        clip.recipe.model, clip.params, clip.tokenizer, source, options.data, config
    )
    save_codes(codes, out)
    count, width = codes.axes.shape
    print(f"{out}: {count} of {width} components, {len(source):,} pictures")
    return 0
