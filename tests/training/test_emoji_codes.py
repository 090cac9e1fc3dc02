"""The codes of the emoji recipe on what the shipped CLIP makes of true pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.cli.overrides import load_recipe
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.models.embedding_codes import EmbeddingCodes, decode, encode, fit_codes
from unclip_jax.pipeline import UnCLIP

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def embeddings() -> dict[str, np.ndarray]:
    """Image embeddings of pictures that the codes are fitted on, and of others."""
    unclip = UnCLIP.load("emoji")
    unclip = replace(unclip, sampling=replace(unclip.sampling, batch_size=64))
    known, held_out = (load_pictures(split, 64, limit=2400) for split in ("train", "test"))
    return {
        "known": unclip.encode_image(known.images),
        "held_out": unclip.encode_image(held_out.images),
        "text": unclip.encode_text(known.captions),
    }


def error(codes: EmbeddingCodes, vectors: np.ndarray) -> float:
    """Mean squared error of the round trip, as a share of the vectors' mean square."""
    back = np.asarray(decode(codes, encode(codes, jnp.asarray(vectors))), np.float64)
    return float(np.mean(np.sum((back - vectors) ** 2, axis=1)) / np.mean(np.sum(vectors**2, 1)))


def test_the_round_trip_loses_less_than_one_percent(embeddings: dict[str, np.ndarray]) -> None:
    fit = load_recipe(str(ROOT / "configs" / "emoji" / "ar_prior.py")).fit
    pairs = (embeddings["known"], embeddings["text"])
    codes = fit_codes(lambda: [pairs], fit)
    assert codes.axes.shape == (80, 128)
    assert error(codes, embeddings["known"]) < 0.01
    assert error(codes, embeddings["held_out"]) < 0.01
    # Half of the components are not enough: the embeddings do not lie in a small space.
    half = fit_codes(lambda: [pairs], replace(fit, components=40))
    assert error(half, embeddings["known"]) > 0.02


def test_the_number_of_components_follows_from_the_error(
    embeddings: dict[str, np.ndarray],
) -> None:
    fit = load_recipe(str(ROOT / "configs" / "emoji" / "ar_prior.py")).fit
    pairs = (embeddings["known"], embeddings["text"])
    codes = fit_codes(lambda: [pairs], replace(fit, components=None, max_error=0.01))
    second_moments = embeddings["known"].T.astype(np.float64) @ embeddings["known"]
    spectrum = np.linalg.eigvalsh(second_moments)[::-1]
    kept = np.cumsum(spectrum) / spectrum.sum()
    assert len(codes.axes) == int(np.argmax(kept >= 0.99)) + 1
