"""unclip fit-linear CLIP --out FOLDER: the linear prior in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_jax.cli.overrides import parse
from unclip_jax.config import DataConfig
from unclip_jax.errors import UserError

if TYPE_CHECKING:
    from unclip_jax.models.linear_prior import LinearPriorConfig
    from unclip_jax.training.objectives.conditions import Pairs


@dataclass(frozen=True)
class LinearOptions:
    """Ridge regression from a CLIP's text embeddings to its image embeddings, in one pass.

    The folder is that of an exported stage: put it into a model's folder as linear_prior, or name
    it in `UnCLIP.load({...})`.
    """

    clip: str
    """The CLIP: a run folder, an exported folder, or a shipped model's name."""
    out: str = "linear_prior"
    """Folder for the prior."""
    data: DataConfig = DataConfig()
    """The pairs, or the stored embeddings of the pictures."""
    ridge: float = 0.01
    """Penalty on the squared weights, in units of the mean variance of a text embedding's entries;
    0 is plain least squares."""
    eval_split: str | None = "test"
    """Split of the same data on which the fit is measured; None measures nothing, and folders and
    tar shards have only 'train'."""


def main(arguments: Sequence[str]) -> int:
    """Writes the folder; returns the exit code."""
    options = parse(LinearOptions, arguments, default=None, program="unclip fit-linear")
    out = Path(options.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    import numpy as np

    from unclip_jax.models.linear_prior import LinearPriorConfig, add_pairs, fit_linear
    from unclip_jax.training.encoded_pairs import make_pair_reader, open_pairs
    from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe
    from unclip_jax.training.recipes.clip import CLIPRecipe
    from unclip_jax.training.weights import Stage, check_stage_folder, load_clip, save_stage

    check_stage_folder(out)  # before the pass
    clip = load_clip(options.clip)
    if not isinstance(clip.recipe, CLIPRecipe):
        raise UserError(f"{options.clip} is not a CLIP: name the run or folder of one")
    assert clip.tokenizer is not None
    config = LinearPriorConfig(clip.recipe.model.embedding_width, options.ridge)
    source = open_pairs(options.data, clip.clip_id, clip.tokenizer)
    eval_data = _eval_data(options)
    eval_source = None
    if eval_data is not None:
        try:
            eval_source = open_pairs(eval_data, clip.clip_id, clip.tokenizer)
        except UserError as error:
            raise UserError(
                f"--eval-split {options.eval_split} cannot be read ({error}): "
                "name another split, or None"
            ) from error
    read = make_pair_reader(clip.recipe.model, clip.params, clip.tokenizer)
    moments = None
    for pairs in read(source, options.data):
        moments = add_pairs(moments, np.asarray(pairs.text), np.asarray(pairs.image))
    assert moments is not None  # a data set without pictures is refused
    params = fit_linear(moments, config)
    recipe = LinearPriorRecipe(clip=options.clip, model=config, data=options.data)
    save_stage(Stage(recipe, params, clip.tokenizer, 0, clip.clip_id), out, "float32")
    print(f"{out}: {moments.count:,} pairs, width {config.embedding_width}, ridge {config.ridge:g}")
    if eval_data is not None and eval_source is not None:
        fitted, raw, count = mean_cosines(config, params, read(eval_source, eval_data))
        print(
            f"split {options.eval_split}, {count:,} pairs: cosine with the image embedding "
            f"{fitted:.4f}, of the text embedding itself {raw:.4f}"
        )
    return 0


def _eval_data(options: LinearOptions) -> DataConfig | None:
    if options.eval_split is None or options.eval_split == options.data.split:
        return None if options.eval_split is None else options.data
    return replace(options.data, split=options.eval_split, embeddings=None)


def mean_cosines(
    config: LinearPriorConfig, params: Any, batches: Iterable[Pairs]
) -> tuple[float, float, int]:
    """Mean cosine with the image embedding of what the prior makes of the caption.

    Returns:
        it, that of the text embedding in its place, and the number of pairs.
    """
    import jax
    import jax.numpy as jnp

    from unclip_jax.models.clip import normalize
    from unclip_jax.models.linear_prior import LinearPrior

    @jax.jit
    def cosines(image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        predicted: Any = LinearPrior(config).apply({"params": params}, text)
        return jnp.sum(normalize(predicted) * image), jnp.sum(text * image)

    fitted = raw = 0.0
    count = 0
    for pairs in batches:
        one, other = cosines(pairs.image, pairs.text)
        fitted, raw, count = fitted + float(one), raw + float(other), count + len(pairs.image)
    return fitted / count, raw / count, count
