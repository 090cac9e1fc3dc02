"""What a picture was made from, for its file: two pictures with equal facts are the same bytes.

On the same accelerator and versions, that is; a file does not name the machine that made it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unclip_jax.config import to_dict
from unclip_jax.generation.drawing import Request
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.training.recipe import recipe_to_json
from unclip_jax.training.weights import Stage


def picture_facts(
    requests: Sequence[Request],
    how: SamplingConfig,
    prior: str,
    upsample: int | None,
    model: str,
    weights: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The facts of each request, which JSON can hold.

    Args:
        prior: one of `PRIORS`, or "none".
        upsample: side of the pictures; None is the decoder's own.
        model: a path or name, of which the last part is kept: folders tell who works where.
        weights: `stage_id` of the stages that draw, by name.
    """
    same = {
        "prior": prior,
        "prior_steps": how.prior.num_steps,
        "prior_guidance": how.prior.guidance_scale,
        "decoder_steps": how.decoder.num_steps,
        "guidance": how.decoder.guidance_scale,
        "candidates": how.num_candidates,
        "upsample": upsample,
        "sampling": _relevant(how, prior, upsample),
        "weights": dict(weights),
    }
    name = Path(model).name
    return [
        {"model": name, "prompt": one.prompt, "seed": one.seed, "index": one.index, **same}
        for one in requests
    ]


def _relevant(how: SamplingConfig, prior: str, upsample: int | None) -> dict[str, Any]:
    """`how` without what these pictures do not depend on."""
    sampling = to_dict(how)
    reads = {
        "prior": prior == "diffusion",
        "ar_prior": prior == "ar",
        "num_candidates": prior != "none",
        "upsampler_256": upsample is not None,
        "upsampler_1024": upsample == 1024,
        "upsample_batch_size": upsample is not None,
        "tile": upsample is not None,
        "tile_overlap": upsample is not None and how.tile is not None,
        "stages_at_once": False,
    }
    return {name: value for name, value in sampling.items() if reads.get(name, True)}


def stage_id(stage: Stage) -> str:
    """16 hex digits that name what a stage computes: all of it, its weights as they are stored.

    About a second a gigabyte. Unlike those of `weights_id`, bfloat16 and float32 differ.
    """
    arrays = {
        "params": stage.params,
        "codes": stage.codes,
        "score_norms": stage.score_norms,
        "statistics": None if stage.statistics is None else vars(stage.statistics),
    }
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        digests = list(pool.map(lambda leaf: _digest(*leaf), leaves))
    tokenizer = None if stage.tokenizer is None else stage.tokenizer.to_json()
    words = json.dumps([recipe_to_json(stage.recipe), tokenizer], sort_keys=True)
    return hashlib.sha256(words.encode() + b"".join(digests)).hexdigest()[:16]


def _digest(path: Any, leaf: Any) -> bytes:
    array = np.ascontiguousarray(jax.device_get(leaf))
    head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
    digest = hashlib.sha256(head.encode())
    digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.digest()
