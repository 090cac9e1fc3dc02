"""What is computed of the condition once for a chain: the same numbers as at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from tests.models.networks import DECODER, MASK, PRIOR, TOKENS, Network, T, draw
from unclip_jax.models.decoder import Decoder, DecoderConfig, denoise_picture, encode_condition
from unclip_jax.models.prior import DiffusionPrior, denoise_embedding, read_caption
from unclip_jax.models.unet import project_context

KARLO = replace(DECODER, text=None, clip_text_width=10, null_embedding="zero")
GLIDE = replace(DECODER, embedding_width=None, null_embedding="zero", masks_padding=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prior_reads_a_caption_once(dtype: Any) -> None:
    config = replace(PRIOR, transformer=replace(PRIOR.transformer, dtype=dtype))
    text = {
        "text_embedding": draw(4, 3, 12),
        "text_states": draw(5, 3, 6, 10),
        "text_mask": MASK,
    }
    network = Network(DiffusionPrior(config), {"noisy": draw(3, 3, 12), "t": T, **text})
    cache = jax.jit(lambda *given: read_caption(config, network.params, *given))(*text.values())
    step: Any = jax.jit(lambda *given: denoise_embedding(config, network.params, cache, *given))
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for seed, t in ((6, T), (7, T[::-1])):
        noisy = draw(seed, 3, 12)
        found = step(noisy, t)
        np.testing.assert_allclose(found, network(noisy=noisy, t=t), rtol=tolerance, atol=tolerance)
    assert np.std(np.asarray(found)) > 0.1


@pytest.mark.parametrize(
    "config",
    [
        DECODER,
        KARLO,
        GLIDE,
        replace(DECODER, unet=replace(DECODER.unet, dtype="bfloat16")),
        replace(
            DECODER,
            unet=replace(DECODER.unet, in_channels=7),
            is_inpainting=True,
        ),
    ],
    ids=["own text", "karlo", "glide", "bfloat16", "inpainting"],
)
def test_decoder_encodes_its_condition_once(config: DecoderConfig) -> None:
    condition: dict[str, Any] = {
        "embedding": draw(2, 3, 12),
        "has_embedding": np.array([True, False, True]),
        "tokens": TOKENS,
        "text_mask": MASK,
        "text_embedding": draw(4, 3, 12),
        "text_states": draw(5, 3, 6, 10),
    }
    known = draw(8, 3, 8, 8, 4) if config.is_inpainting else None
    inputs = {"x": draw(1, 3, 8, 8, 3), "t": T, **condition, "known": known}
    network = Network(Decoder(config), inputs)
    encode = jax.jit(lambda *given: encode_condition(config, network.params, *given))
    encoded = encode(*condition.values())
    names = {name for name, block in network.params["unet"].items() if "context_kv" in block}
    assert isinstance(encoded.context, dict) and set(encoded.context) == names
    assert len(names) == 4  # one on the way down, one in the middle, two on the way up

    def run(x: np.ndarray, t: np.ndarray) -> Any:
        return denoise_picture(config, network.params, encoded, x, t, known)

    step: Any = jax.jit(run)
    tolerance = 1e-5 if config.unet.dtype == "float32" else 0.1
    for seed, t in ((6, T), (7, T[::-1])):
        x = draw(seed, 3, 8, 8, 3)
        found = step(x, t)
        np.testing.assert_allclose(found, network(x=x, t=t), rtol=tolerance, atol=tolerance)
    assert np.std(np.asarray(found)) > 0.1


def test_a_block_without_context_has_no_projection() -> None:
    params = {"conv_in": {"kernel": 0}, "middle_attention": {"qkv": {}, "norm": {}}}
    assert project_context(DECODER.unet, params, draw(1, 2, 3, 8)) == {}
