"""What a picture was made from, for its file: two pictures with equal facts are the same bytes.

On the same accelerator and versions, that is; a file does not name the machine that made it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unclip_jax.config import to_dict
from unclip_jax.generation.drawing import Request
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.training.recipe import stage_of
from unclip_jax.training.weights import Stage


def make_facts(
    how: SamplingConfig,
    prior: str,
    upsample: int | None,
    model: str,
    weights: Mapping[str, str],
) -> Callable[[Request], dict[str, Any]]:
    """request → its facts, which JSON can hold; made when they are asked for, not kept.

    Args:
        prior: one of `PRIORS`, or "none".
        upsample: side of the pictures; None is the decoder's own.
        model: a path or name, of which the last part is kept: folders tell who works where.
        weights: `stage_id` of the stages that draw, by name.
    """
    sampling = relevant_sampling(how, prior, upsample)
    scales = {"diffusion": how.prior.guidance_scale, "ar": how.ar_prior.guidance_scale}
    same = {
        "prior": prior,
        "prior_steps": how.prior.num_steps if prior == "diffusion" else None,
        "prior_guidance": scales.get(prior),
        "decoder_steps": how.decoder.num_steps,
        "candidates": None if prior == "none" else how.num_candidates,
        "upsample": upsample,
        "weights": dict(weights),
    }

    def one(request: Request) -> dict[str, Any]:
        scale = how.decoder.guidance_scale if request.guidance is None else request.guidance
        decoder = {**sampling["decoder"], "guidance_scale": scale}
        return {
            "model": Path(model).name,
            "verb": "text",
            "prompt": request.prompt,
            **({"negative": request.negative} if request.negative else {}),
            "seed": request.seed,
            "index": request.index,
            "guidance": scale,
            **same,
            "sampling": {**sampling, "decoder": decoder},
        }

    return one


def relevant_sampling(how: SamplingConfig, prior: str, upsample: int | None) -> dict[str, Any]:
    """`how` without what these pictures do not depend on, as JSON."""
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
        "dtype": how.dtype is not None,
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
    computes = {
        name: getattr(stage.recipe, name, None) for name in ("model", "diffusion", "classes")
    }
    words = json.dumps([stage_of(stage.recipe), _chosen(computes), tokenizer], sort_keys=True)
    return hashlib.sha256(words.encode() + b"".join(digests)).hexdigest()[:16]


def _chosen(config: Any) -> Any:
    """A config as JSON without what has its default: a field that a later version adds to one does
    not make other weights of those that were trained before."""
    if isinstance(config, dict):
        return {name: _chosen(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_chosen(value) for value in config]
    if not dataclasses.is_dataclass(config):
        return config
    values = {field.name: (getattr(config, field.name), field) for field in fields(config)}
    return {
        name: _chosen(value) for name, (value, field) in values.items() if value != field.default
    }


def _digest(path: Any, leaf: Any) -> bytes:
    array = np.ascontiguousarray(jax.device_get(leaf))
    head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
    digest = hashlib.sha256(head.encode())
    digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.digest()
