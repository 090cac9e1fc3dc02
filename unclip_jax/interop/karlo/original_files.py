"""Karlo's own files, and Kandinsky 2.1's prior: torch archives and no config.

What a file is, is told by the names in it. Widths and depths are read from shapes; how a projection
is cut into heads and how channels are grouped is not in the file: the published networks have heads
of 64 and 32 groups, others must be named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip_jax.config import DataConfig, to_dict
from unclip_jax.errors import UserError
from unclip_jax.interop.clip import import_clip
from unclip_jax.interop.clip_stage import clip_config, clip_stage
from unclip_jax.interop.foreign_stage import ForeignModel, ForeignStage
from unclip_jax.interop.infer_unet import HeadOptions, infer_unet
from unclip_jax.interop.karlo.configs import Coefficients, upsampler_recipe
from unclip_jax.interop.karlo.keys import decoder_keys, prior_keys, upsampler_keys
from unclip_jax.interop.karlo.sampling import ORIGINAL_PRIOR_LIMIT, karlo_sampling
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensors, without_prefix
from unclip_jax.interop.torch_archive import Opened
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.weights import Stage

_ENDINGS = (".ckpt", ".pt", ".pth", ".th", ".safetensors")
_EXTRA_TOKENS = 4
"""Behind the caption in the prior's sequence: text embedding, time, picture, query."""


@dataclass(frozen=True)
class Hyperparameters:
    """What Karlo's own files do not tell."""

    prior_heads: int | None = None
    """Attention heads of the prior; None is one for 64 channels."""
    heads: HeadOptions = HeadOptions()
    """Of the U-Nets."""
    image_size: int = 64
    """Side of the decoder's pictures; the upsampler's are four times that."""


def open_original_files(
    folder: Path,
    clip: Path | None = None,
    coefficients: Coefficients = "original",
    given: Hyperparameters = Hyperparameters(),
    tokenizer: Path | None = None,
) -> ForeignModel:
    """What the files in a folder are of prior, decoder, upsamplers, statistics and CLIP.

    Args:
        clip: a CLIP's folder or file, where the folder has none.
        tokenizer: folder of its vocabulary, where that is neither OpenAI's nor beside its weights.
    Raises:
        UserError: a file that cannot be read, a part that is missing or there twice.
    """
    parts: dict[str, Opened] = {}
    for path in sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS)):
        opened = open_file(path)
        kind = _kind(opened)
        if kind in parts:
            raise UserError(f"{folder} has two files of a {kind}: {parts[kind].path} and {path}")
        if kind is not None:
            parts[kind] = opened
    found = clip or (parts["clip"].path if "clip" in parts else None)
    if found is None:
        raise UserError(f"{folder} has no CLIP: put ViT-L-14.pt there, or name one with --clip")
    stage = clip_stage(import_clip(found, tokenizer=tokenizer), unit_embeddings=False)
    tables = "float64" if coefficients == "original" else "float32"
    stages: dict[str, ForeignStage] = {}
    if "prior" in parts:
        process = DiffusionConfig(prediction="x0", variance="fixed_small", tables=tables)
        stages["prior"] = _prior(parts, stage, process, given)
    if "decoder" in parts:
        process = DiffusionConfig(prediction="eps", variance="learned_range", tables=tables)
        stages["decoder"] = _decoder(parts["decoder"], process, given)
    if "upsampler" in parts:
        process = DiffusionConfig(prediction="eps", variance="fixed_small", tables=tables)
        for part, name in (("first_steps", ""), ("last_step", "_last")):
            upsampler = _upsampler(parts["upsampler"], part, process, given)
            stages[f"upsampler_256{name}"] = upsampler
    if not stages:
        raise UserError(
            f"{folder} has no file of Karlo's: a prior, a decoder or the upsamplers, as .ckpt"
        )
    limit = ORIGINAL_PRIOR_LIMIT if coefficients == "original" else 5.0
    return ForeignModel(stage, stages, to_dict(karlo_sampling(limit)))


def _kind(opened: Opened) -> str | None:
    """What a file holds, by a name that only it has."""
    marks = {
        "prd_emb": "prior",
        "cf_param": "decoder",
        "model_first_steps.time_embed.0.weight": "upsampler",
        "visual.conv1.weight": "clip",
    }
    for name in opened.tensors:
        for mark, kind in marks.items():
            if name.endswith(mark):
                return kind
    if len(opened.tensors) == 2 and len({t.shape for t in opened.tensors.values()}) == 1:
        (shape,) = {tensor.shape for tensor in opened.tensors.values()}
        return "statistics" if len(shape) == 1 else None
    return None


def _bare(tensors: Tensors, prefix: str) -> Tensors:
    """Without what Lightning puts before every name."""
    for start in (f"state_dict.{prefix}", prefix, "state_dict."):
        if found := without_prefix(tensors, start):
            return found
    return tensors


def _prior(
    parts: dict[str, Opened], clip: Stage, process: DiffusionConfig, given: Hyperparameters
) -> ForeignStage:
    path, tensors = parts["prior"].path, _bare(parts["prior"].tensors, "model.")
    if "statistics" not in parts:
        raise UserError(
            f"{path.parent} has no statistics of CLIP's embeddings (ViT-L-14_stats.th): the prior "
            "needs them, put them beside it"
        )
    try:
        _, length, width = tensors["positional_embedding"].shape
        embedding_width = tensors["out_proj.weight"].shape[0]
        text_width = tensors["text_enc_proj.weight"].shape[1]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a prior of Karlo's ({error}): name another file") from None
    heads = given.prior_heads or width // 64
    if not heads or width % heads:
        raise UserError(
            f"{path} has a prior of {width} channels, which are no heads of 64: name their number "
            "with --prior-heads"
        )
    matches = (re.match(r"transformer\.resblocks\.(\d+)\.", name) for name in tensors)
    depth = 1 + max((int(match[1]) for match in matches if match), default=-1)
    model = PriorConfig(
        embedding_width=embedding_width,
        text_width=text_width,
        context_length=length - _EXTRA_TOKENS,
        transformer=TransformerConfig(width=width, depth=depth, heads=heads),
        embedding_scale=1.0,
        is_whitened=True,
    )
    if clip_config(clip).embedding_width != embedding_width:
        raise UserError(
            f"{path} is for embeddings of {embedding_width}, the CLIP given makes "
            f"{clip_config(clip).embedding_width}: name the CLIP it was trained for"
        )
    # The file is the pair (mean, deviation).
    arrays = [tensor.read() for _, tensor in sorted(parts["statistics"].tensors.items())]
    mean, deviation = (np.asarray(array, np.float32) for array in arrays)
    return ForeignStage(
        PriorRecipe(clip="", model=model, diffusion=process),
        prior_keys(model, "karlo"),
        tensors,
        str(path),
        ("causal_attention_mask", "clip_mean", "clip_std"),
        EmbeddingStatistics(mean, deviation),
    )


def _decoder(opened: Opened, process: DiffusionConfig, given: Hyperparameters) -> ForeignStage:
    tensors = _bare(opened.tensors, "model.")
    what = str(opened.path)
    unet = infer_unet(tensors, given.heads, what=what, image_size=given.image_size)
    try:
        embedding_width = tensors["clip_emb.weight"].shape[1]
        tokens = tensors["clip_tok_proj.weight"].shape[0]
        text_width = tensors["text_seq_proj.0.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise UserError(f"{what} is not a decoder of Karlo's (no {error})") from None
    model = DecoderConfig(
        unet=unet,
        text=None,
        clip_text_width=text_width,
        embedding_width=embedding_width,
        num_embedding_tokens=tokens // (unet.context_width or 1),
        embedding_scale=1.0,
        null_embedding="learned",
        masks_padding=True,
    )
    data = DataConfig(image_size=unet.image_size)
    recipe = DecoderRecipe(clip="", model=model, diffusion=process, data=data)
    return ForeignStage(recipe, decoder_keys(model, "karlo"), tensors, what)


def _upsampler(
    opened: Opened, part: str, process: DiffusionConfig, given: Hyperparameters
) -> ForeignStage:
    tensors = _bare(opened.tensors, f"model_{part}.")
    what = f"{opened.path}: model_{part}"
    unet = infer_unet(tensors, given.heads, what=what, image_size=4 * given.image_size)
    return ForeignStage(
        upsampler_recipe(unet, process), upsampler_keys(unet, "karlo"), tensors, what
    )
