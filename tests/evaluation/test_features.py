"""The stream of features: order, padding, one program, and no more pictures than a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.generation.test_all_stages import stage
from unclip_jax.data.images import resize_and_crop
from unclip_jax.errors import UserError
from unclip_jax.evaluation.extractors import clip_extractor, function_extractor
from unclip_jax.evaluation.features import Extractor, extract_features, stream_features
from unclip_jax.evaluation.moments import moments_of, stream_moments
from unclip_jax.generation.bundle import Bundle
from unclip_jax.generation.sampling import SamplingConfig


def pictures(count: int, side: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1)[:, :5].astype(np.float32)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12])
def test_order_and_padding(count: int) -> None:
    shapes = set()

    def function(rows: np.ndarray) -> np.ndarray:
        shapes.add(rows.shape)
        return flat(rows)

    extractor = function_extractor("pixels", function, side=6, batch_size=4)
    given = pictures(count)
    np.testing.assert_array_equal(extract_features(extractor, given), flat(given))
    assert shapes == {(4, 6, 6, 3)}  # one program, however many pictures
    assert extractor.width == 5
    blocks = list(stream_features(extractor, iter(given)))
    assert [len(block) for block in blocks[:-1]] == [4] * (len(blocks) - 1)


def test_pictures_of_any_size() -> None:
    extractor = function_extractor("pixels", flat, side=6)
    large = pictures(2, 13)
    wanted = flat(np.stack([resize_and_crop(one, 6) for one in large]))
    np.testing.assert_array_equal(extract_features(extractor, list(large)), wanted)


def test_no_more_than_two_batches_are_held() -> None:
    alive: list[int] = []
    most = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None or not isinstance(self.base, Counted):
                alive.pop()

    def source() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(50):
            picture = np.zeros((6, 6, 3), np.uint8).view(Counted)
            alive.append(1)
            most = max(most, len(alive))
            yield picture

    extractor = function_extractor("pixels", flat, side=6, batch_size=4)
    total = sum(len(block) for block in stream_features(extractor, source()))
    assert total == 50 and most <= 9


def test_moments_of_a_stream() -> None:
    extractor = function_extractor("pixels", flat, side=6, batch_size=4)
    found, wanted = stream_moments(stream_features(extractor, pictures(11))), flat(pictures(11))
    np.testing.assert_allclose(found.scatter, moments_of(wanted).scatter)


def test_refusals() -> None:
    extractor = function_extractor("pixels", flat, side=6)
    with pytest.raises(UserError, match="no picture"):
        extract_features(extractor, [])
    broken = function_extractor("broken", lambda rows: flat(rows) * np.nan, side=6)
    with pytest.raises(UserError, match="broken makes no finite"):
        extract_features(broken, pictures(2))
    wrong = Extractor("wrong", "wrong", 7, 4, lambda picture: picture, flat)
    with pytest.raises(ValueError, match="a width of 7"):
        extract_features(wrong, pictures(2))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle({"clip": stage("clip")}, SamplingConfig(batch_size=4))


def test_clip_of_a_model(bundle: Bundle) -> None:
    recipe: Any = bundle.clip.recipe
    side = recipe.model.image_size
    extractor = clip_extractor(bundle)
    given = pictures(6, side)
    found = extract_features(extractor, given)
    wanted = bundle.encode_image(given)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.shape == (6, extractor.width)
    assert bundle.clip.clip_id in extractor.key and str(side) in extractor.key


DEVICES = """
import numpy as np
from tests.generation.test_all_stages import stage
from unclip_jax.evaluation.extractors import clip_extractor
from unclip_jax.evaluation.features import extract_features
from unclip_jax.generation.bundle import Bundle
import jax, sys
bundle = Bundle({"clip": stage("clip")})
extractor = clip_extractor(bundle, 1)
assert extractor.batch == jax.device_count() == 4
side = bundle.clip.recipe.model.image_size
given = np.random.default_rng(0).integers(0, 256, (6, side, side, 3), dtype=np.uint8)
np.save(sys.argv[1], extract_features(extractor, given))
"""


def test_four_devices_make_the_same(bundle: Bundle, tmp_path: Path, repository: Path) -> None:
    flags = "--xla_force_host_platform_device_count=4 " + os.environ.get("XLA_FLAGS", "")
    subprocess.run(
        [sys.executable, "-c", DEVICES, str(tmp_path / "features.npy")],
        cwd=repository,
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
    )
    recipe: Any = bundle.clip.recipe
    given = pictures(6, recipe.model.image_size)
    found = extract_features(clip_extractor(bundle, 1), given)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), found, atol=1e-6)
