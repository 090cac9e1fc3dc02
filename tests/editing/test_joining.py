"""What was drawn takes the tone of the photo at the border, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.editing.joining import BAND, join
from unclip_jax.evaluation.seams import find_seams

SIDE, CUT = 64, 24


def ramp(step: float) -> np.ndarray:
    """[1, S, S, 3] float64, rising to the right, with a step at the cut."""
    rising = np.linspace(40, 120, SIDE)[None, :] * np.ones((SIDE, 1))
    rising[:, CUT:] += step
    return np.repeat(rising[..., None], 3, axis=-1)[None]


def left() -> np.ndarray:
    return np.arange(SIDE)[None].repeat(SIDE, 0) < CUT


def test_a_step_at_the_border_goes_and_fades_out() -> None:
    images = ramp(50).round().astype(np.uint8)
    joined = join(images, left())
    assert (joined[:, :, :CUT] == images[:, :, :CUT]).all()
    change = joined[0, SIDE // 2, :, 0].astype(int) - images[0, SIDE // 2, :, 0]
    assert -50 <= change[CUT] < -35 and (np.diff(change[CUT:]) >= 0).all()
    np.testing.assert_allclose(change[CUT + 8] / change[CUT], np.exp(-1), atol=0.05)
    assert change[CUT + int(BAND * 8) - 1] >= -1  # nothing ends suddenly
    box = (0, 0, SIDE, CUT)
    assert find_seams(images[0], box)[0].ratio > 20 > 10 > find_seams(joined[0], box)[0].ratio


@pytest.mark.parametrize("step", [0.0, 50.0])
def test_all_sides_are_alike(step: float) -> None:
    images, known = ramp(step) / 127.5 - 1, left()
    joined = join(images.astype(np.float32), known)
    for turn in (1, 2, 3):
        turned = join(np.rot90(images, turn, (1, 2)).astype(np.float32), np.rot90(known, turn))
        np.testing.assert_allclose(np.rot90(turned, -turn, (1, 2)), joined, atol=1e-6)


def test_what_goes_on_smoothly_stays() -> None:
    images = (ramp(0) / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(join(images, left()), images, atol=1e-6)


def test_a_hole_is_corrected_from_all_around() -> None:
    images = np.full((2, SIDE, SIDE, 3), 100, np.uint8)
    known = np.ones((SIDE, SIDE), bool)
    known[20:44, 20:44] = False
    images[0, ~known], images[1, ~known] = 140, 60
    joined = join(images, known)
    assert (joined[:, known] == 100).all()
    assert 100 < joined[0, 20, 30, 0] < 112 and 88 < joined[1, 43, 30, 0] < 100
    assert joined[0, 32, 32, 0] > joined[0, 32, 22, 0]
    assert (joined[0].astype(int) + joined[1] == 200).all()


@pytest.mark.parametrize("value", [False, True])
def test_nothing_to_join(value: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    assert join(images, np.full((8, 8), value)) is images


def test_one_pixel_of_either() -> None:
    images = np.full((1, 8, 8, 3), 90, np.uint8)
    images[0, 3, 3] = 200
    one = np.zeros((8, 8), bool)
    one[3, 3] = True
    assert join(images, one)[0, 3, 4, 0] > 120 and join(images, ~one)[0, 3, 3, 0] < 130
    assert (join(images, one)[0, 3, 3] == 200).all()
