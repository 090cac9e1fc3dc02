"""What an inpainting network is shown in training: the batch's own pictures, where a mask keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toys
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.upsampler import Upsampler
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.objectives.decoder import make_decoder_objective
from unclip_jax.training.objectives.upsampler import make_upsampler_objective

ROWS = 60


def known_of(
    module: Any, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> list[np.ndarray | None]:
    """What the network is given as `known` under two keys."""
    seen: list[Any] = []

    def apply(self: Any, variables: Any, x: Any, *inputs: Any, **options: Any) -> Any:
        seen.append(options.get("known", inputs[-1]))
        return jnp.zeros((*x.shape[:3], self.config.unet.out_channels))

    monkeypatch.setattr(module, "apply", apply)
    embeddings = np.ones((ROWS, toys.decoder_recipe().model.embedding_width or 0), np.float32)
    batch = {**toys.batch(ROWS), "embedding": embeddings}  # so that no CLIP is run
    for seed in (1, 2):
        objective({}, {}, batch, jax.random.key(seed))
    return [None if known is None else np.asarray(known) for known in seen]


def check(known: np.ndarray | None, other: np.ndarray | None) -> None:
    """The pictures where they are kept, zero elsewhere; other masks under another key."""
    assert known is not None and other is not None
    kept = known[..., 3:] == 1
    images = to_float(jnp.asarray(toys.batch(ROWS)["image"]))
    np.testing.assert_allclose(known[..., :3], np.where(kept, images, 0), atol=1e-6)
    assert 0.3 < kept.mean() < 0.7 and not np.array_equal(known, other)
    assert not kept.any((1, 2, 3)).all() and kept.any((1, 2, 3)).mean() > 0.7  # some see nothing


def test_a_decoder_is_shown_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = toys.clip_recipe()
    tuned = make_decoder_objective(toys.recipe("decoder_inpaint"), clip.model, toys.empty_caption())
    check(*known_of(Decoder, tuned, monkeypatch))
    plain = make_decoder_objective(toys.decoder_recipe(), clip.model, toys.empty_caption())
    assert known_of(Decoder, plain, monkeypatch) == [None, None]


def test_an_upsampler_is_shown_its_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = replace(toys.recipe("upsampler").model.unet, in_channels=10, image_size=16)
    tuned = toys.recipe(
        "upsampler",
        model={"unet": unet, "is_inpainting": True},
        data={"image_size": 16},
        crop_fraction=1.0,
    )
    check(*known_of(Upsampler, make_upsampler_objective(tuned), monkeypatch))
