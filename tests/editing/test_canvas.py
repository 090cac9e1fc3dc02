"""Windows over pictures of any size: order, coverage, and what is known at another side."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.editing.canvas import (
    Window,
    bounding_box,
    extend,
    plan_windows,
    resize_known,
    resize_square,
    room_for,
)
from unclip_jax.editing.pixel_settings import Outpaint


def canvas(shape: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """[H, W] bool, True inside (top, left, height, width)."""
    mask = np.zeros(shape, bool)
    top, left, height, width = box
    mask[top : top + height, left : left + width] = True
    return mask


def check(known: np.ndarray, wanted: np.ndarray, side: int) -> list[Window]:
    """The plan, after seeing that windows lie inside, each draws something, and all is drawn."""
    windows, left = plan_windows(known, wanted, side), wanted.copy()
    for window in windows:
        assert window.side == side and window.top >= 0 and window.left >= 0
        assert left[window.place].shape == (side, side) and left[window.place].any()
        left[window.place] = False
    assert not left.any()
    return windows


def test_one_window_around_the_middle_of_what_fits_into_it() -> None:
    wanted = canvas((100, 160), (40, 60, 10, 20))
    assert check(~wanted, wanted, 50) == [Window(20, 45, 50)]
    corner = canvas((100, 160), (0, 150, 5, 10))
    assert check(~corner, corner, 50) == [Window(0, 110, 50)]
    assert check(~corner, corner, 100) == [Window(0, 60, 100)]


def test_an_extension_is_drawn_from_the_known_outwards() -> None:
    known = canvas((64, 192), (0, 0, 64, 64))
    assert check(known, ~known, 64) == [Window(0, left, 64) for left in (32, 64, 96, 128)]
    known = canvas((64, 192), (0, 64, 64, 64))
    lefts = [window.left for window in check(known, ~known, 64)]
    assert lefts == [32, 0, 96, 128]
    # It would hold all that is wanted, and know nothing of it.
    known = canvas((64, 128), (0, 0, 64, 64))
    assert check(known, ~known, 64) == [Window(0, 32, 64), Window(0, 64, 64)]


def test_one_window_where_none_knows_much() -> None:
    known = canvas((128, 128), (32, 32, 64, 64))
    assert check(known, ~known, 128) == [Window(0, 0, 128)]


def test_every_window_around_a_picture_knows_half() -> None:
    known = canvas((128, 128), (32, 32, 64, 64))
    windows, seen = check(known, ~known, 64), known.copy()
    assert len(windows) <= 8
    for window in windows:
        assert 2 * seen[window.place].sum() >= 64 * 64
        seen[window.place] = True


@pytest.mark.parametrize("shape", [(64, 64), (20, 97), (131, 17), (40, 40)])
@pytest.mark.parametrize("side", [8, 13, 17])
def test_everything_is_drawn(shape: tuple[int, int], side: int) -> None:
    random = np.random.default_rng(side)
    nothing = np.zeros(shape, bool)
    check(nothing, ~nothing, side)  # a full mask
    scattered = random.random(shape) < 0.02
    check(~scattered, scattered, side)
    assert plan_windows(~nothing, nothing, side) == []
    one = nothing.copy()
    one[shape[0] - 1, 0] = True
    assert len(check(~one, one, side)) == 1


def test_what_nobody_wants_is_not_drawn_for_itself() -> None:
    """The room around a thin picture: windows cover it, none is there for it."""
    margins = room_for((10, 200), 64)
    assert margins == (27, 27, 0, 0)
    known = extend(canvas((10, 200), (0, 0, 10, 100)), margins)
    wanted = extend(canvas((10, 200), (0, 100, 10, 100)), margins)
    windows = check(known, wanted, 64)
    assert {window.top for window in windows} == {0} and len(windows) <= 4


def test_margins() -> None:
    assert Outpaint(left=3, bottom=5).margins(40, 30) == (0, 5, 3, 0)
    assert Outpaint(zoom_out=2.0).margins(41, 30) == (20, 21, 15, 15)
    assert Outpaint(zoom_out=1.5, right=7).margins(10, 10) == (2, 3, 2, 10)
    extended = extend(np.ones((4, 5, 3), np.uint8), (1, 2, 3, 4))
    assert extended.shape == (7, 12, 3) and bounding_box(extended[..., 0] > 0) == (1, 3, 4, 5)


@pytest.mark.parametrize(("side", "target"), [(64, 16), (50, 16), (16, 64), (9, 16), (16, 16)])
def test_nothing_unknown_gets_into_what_is_known(side: int, target: int) -> None:
    random = np.random.default_rng(1)
    picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    known = canvas((side, side), (0, 0, side, side // 2))
    small, keep = resize_known(picture, known, target)
    other = np.where(known[..., None], picture, 255 - picture)
    again, same = resize_known(other, known, target)
    assert small.shape == (target, target, 3) and keep.shape == (target, target)
    np.testing.assert_array_equal(keep, same)
    np.testing.assert_array_equal(small[keep], again[keep])
    assert abs(keep.mean() - known.mean()) <= 1 / min(side, target)
    # Where all is known it is the plain mean.
    whole, _ = resize_known(picture, np.ones_like(known), target)
    inside = canvas((target, target), (0, 0, target, max(1, target // 2 - target // 8)))
    if target <= side:
        np.testing.assert_allclose(small[inside].astype(int), whole[inside], atol=1)


def test_a_pixel_is_known_if_half_of_it_is() -> None:
    picture = np.full((4, 4, 3), 100, np.uint8)
    known = np.ones((4, 4), bool)
    known[0, 0] = known[0, 2] = known[1, 2] = known[2, 2:] = known[3, 3] = False
    picture[~known] = 255
    small, keep = resize_known(picture, known, 2)
    assert keep.tolist() == [[True, True], [True, False]]
    assert np.all(small[keep] == 100)
    nothing, none = resize_known(picture, np.zeros((4, 4), bool), 2)
    assert not none.any() and not nothing.any()


def test_squares_keep_their_pixels_at_their_own_side() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert resize_square(picture, 16) is picture
    assert resize_square(picture, 11).shape == (11, 11, 3)
