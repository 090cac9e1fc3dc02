"""Sampling in bfloat16 what was trained in float32."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.generation.test_all_stages import SAMPLING, TEXTS, stage
from unclip_jax.config import from_dict, to_dict
from unclip_jax.generation.facts import relevant_sampling
from unclip_jax.generation.keys import image_keys
from unclip_jax.generation.precision import computing_in
from unclip_jax.generation.programs import decoder_program, prior_program, upsampler_program
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.pipeline import UnCLIP

HALF = replace(SAMPLING, dtype="bfloat16")


@pytest.fixture(scope="module")
def unclip() -> UnCLIP:
    clip = stage("clip")
    on_clip = {name: stage(name, clip.clip_id) for name in ("prior", "decoder")}
    return UnCLIP({"clip": clip, **on_clip, "upsampler_256": stage("upsampler")}, SAMPLING)


def test_every_tower_of_a_stage_is_cast(unclip: UnCLIP) -> None:
    find = computing_in(unclip.stage, "bfloat16")
    assert "float32" not in str(to_dict(find("decoder").recipe)["model"])
    assert find("clip").recipe.model.vision.dtype == "bfloat16"  # pyright: ignore
    assert computing_in(unclip.stage, None)("decoder") is unclip.stage("decoder")


def test_half_the_precision_draws_nearly_the_same(unclip: UnCLIP) -> None:
    keys = image_keys(0, range(3))
    embeddings = [unclip.sample_prior(TEXTS, keys, how) for how in (SAMPLING, HALF)]
    cosines = np.sum(embeddings[0] * embeddings[1], axis=1)
    assert embeddings[1].dtype == np.float32
    assert np.all(cosines > 0.99) and np.any(embeddings[0] != embeddings[1])
    full, half = (
        unclip.decode(embeddings[0], TEXTS, keys, how, as_float=True) for how in (SAMPLING, HALF)
    )
    assert 0 < np.abs(full - half).mean() < 0.05
    large = [unclip.upsample(full, keys, 256, how, as_float=True) for how in (SAMPLING, HALF)]
    assert 0 < np.abs(large[0] - large[1]).mean() < 0.05


def test_the_products_are_bfloat16(unclip: UnCLIP) -> None:
    rows = {
        "tokens": unclip.tokenizer(TEXTS[:1]),
        "keys": np.zeros((1, *jax.random.key_data(image_keys(0, [0])).shape[1:]), np.uint32),
        "embedding": np.ones((1, 16), np.float32),
        "image": np.zeros((1, 8, 8, 3), np.uint8),
        "is_real": np.ones(1, bool),
    }
    for program in (
        prior_program(unclip.stage, HALF),
        decoder_program(unclip.stage, HALF),
        upsampler_program(unclip.stage, HALF, 256, has_last=False),
    ):
        params = {name: unclip.stage(name).params for name in program.stages}
        text = str(jax.make_jaxpr(program.run)(params, rows))
        products = [
            line
            for line in text.split("\n")
            if "dot_general[" in line or "conv_general_dilated[" in line
        ]
        # Attention's logits, the timestep's network and the choice among candidates stay float32.
        halves = sum(":bf16" in line for line in products)
        assert halves > 0.7 * len(products), (program.name, halves, len(products))


def test_it_is_a_fact_of_the_picture_where_it_was_chosen() -> None:
    assert relevant_sampling(HALF, "diffusion", None)["dtype"] == "bfloat16"
    known = relevant_sampling(SAMPLING, "diffusion", None)
    assert "dtype" not in known  # as in pictures that were drawn before there was a choice
    assert from_dict(SamplingConfig, known, "sampling.").dtype is None
