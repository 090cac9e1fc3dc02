"""The seam statistic on pictures whose seams are known."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.evaluation.seams import find_seams

BOX = (30, 40, 50, 60)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 110, (120, 150, 3), dtype=np.uint8)


def test_a_picture_of_one_piece_has_no_seam() -> None:
    seams = find_seams(noise(), BOX)
    assert [seam.side for seam in seams] == ["left", "right", "top", "bottom"]
    for seam in seams:
        assert len(seam.lines) == 32
        assert seam.ratio == pytest.approx(1, abs=0.1) and seam.rank < 1


def test_a_piece_of_another_brightness_has_four() -> None:
    picture = noise()
    picture[30:80, 40:100] += 40
    for seam in find_seams(picture, BOX):
        assert seam.border == pytest.approx(40, abs=3)  # noise on both sides nearly cancels
        assert seam.ratio > 5 and seam.rank == 1


def test_one_side_alone() -> None:
    picture = noise()
    picture[:, 100:] += 40
    ranks = {seam.side: seam.rank for seam in find_seams(picture, BOX)}
    assert ranks["right"] == 1 and max(ranks["left"], ranks["top"], ranks["bottom"]) < 1


def test_sides_on_the_pictures_own_border_are_left_out() -> None:
    assert [seam.side for seam in find_seams(noise(), (0, 0, 120, 60))] == ["right"]
    assert len(find_seams(noise(), (0, 0, 120, 5))[0].lines) == 4 + 16
    assert find_seams(noise(), (0, 0, 120, 150)) == []
