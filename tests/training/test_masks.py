"""Random masks: each kind looks as it is described, in the shares that were asked for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import jax
import numpy as np
import pytest

from unclip_jax.errors import UserError
from unclip_jax.training.masks import MaskConfig, random_masks

SIDE, ROWS = 32, 400
KINDS = tuple(field.name for field in fields(MaskConfig))
masks = jax.jit(random_masks, static_argnums=(1, 2))
NONE = dict.fromkeys(KINDS, 0.0)


def draw(rows: int = ROWS, seed: int = 0, **shares: float) -> np.ndarray:
    """Which pixels are erased, [rows, SIDE, SIDE]."""
    config = MaskConfig(**(NONE | shares)) if shares else MaskConfig()
    keep = masks(jax.random.key(seed), (rows, SIDE, SIDE), config)
    assert keep.dtype == bool and keep.shape == (rows, SIDE, SIDE, 1)
    return ~np.asarray(keep)[..., 0]


def is_box(mask: np.ndarray) -> bool:
    """Whether what is set is one upright rectangle."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return bool(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())


def test_full_erases_all() -> None:
    assert draw(5, full=1).all()


def test_rectangles_cover_a_part() -> None:
    erased = draw(rectangles=1)
    shares = erased.mean((1, 2))
    assert 0.1 < shares.mean() < 0.5 and shares.max() < 1 and (shares > 0).mean() > 0.97
    single = np.array([is_box(mask) for mask in erased if mask.any()]).mean()
    assert 0.2 < single < 0.6  # one of one to four, or of several that others hide


def test_a_stroke_is_narrow_and_in_one_piece() -> None:
    erased = draw(stroke=1)
    assert erased.any((1, 2)).all()
    # A brush is at most a quarter of the side wide: no square of a third fits into most of it.
    third = SIDE // 3 + 1
    windows = np.lib.stride_tricks.sliding_window_view(erased, (third, third), (1, 2))
    assert windows.all((-1, -2)).reshape(ROWS, -1).any(axis=1).mean() < 0.3
    assert 0.02 < erased.mean() < 0.4


def test_a_half_plane_is_on_one_side_of_a_line() -> None:
    erased = draw(half_plane=1)
    shares = erased.mean((1, 2))
    assert shares.min() > 0 and shares.max() < 1 and abs(shares.mean() - 0.5) < 0.05
    for mask in erased[:50]:  # in every row and column it changes at most once
        assert np.abs(np.diff(mask.astype(int), axis=0)).sum(0).max() <= 1
        assert np.abs(np.diff(mask.astype(int), axis=1)).sum(1).max() <= 1


def test_a_border_leaves_a_box_that_some_side_was_cut_from() -> None:
    erased = draw(border=1)
    assert erased.any((1, 2)).all()
    assert all(is_box(~mask) for mask in erased if not mask.all())
    for side in (erased[:, 0], erased[:, -1], erased[:, :, 0], erased[:, :, -1]):
        assert 0.4 < side.all(1).mean() < 0.9


def test_kinds_are_drawn_in_their_shares() -> None:
    assert abs(draw(full=1, stroke=3).all((1, 2)).mean() - 0.25) < 4 * np.sqrt(0.1875 / ROWS)
    erased = draw()
    assert 0.05 < erased.all((1, 2)).mean() < 0.2 and 0.3 < erased.mean() < 0.6


def test_a_row_depends_on_the_key_and_its_number_alone() -> None:
    few, many = draw(5), draw()
    np.testing.assert_array_equal(few, many[:5])
    partial = [mask.tobytes() for mask in many[:9] if not mask.all()]
    assert len(set(partial)) == len(partial) > 5
    assert not np.array_equal(few, draw(5, seed=1))


@pytest.mark.parametrize("shares", [NONE, {"full": -1.0}, {"stroke": float("inf")}])
def test_shares_are_checked(shares: Any) -> None:
    with pytest.raises(UserError, match=r"give shares of 0 or more, one of them above 0"):
        MaskConfig(**shares)
