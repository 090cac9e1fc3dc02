"""Neighbours, precision and recall, density and coverage: by hand, and against `prdc`."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.evaluation.manifold import manifold_scores
from unclip_jax.evaluation.memorisation import memorisation, nearest_ratio
from unclip_jax.evaluation.neighbours import distance_blocks, nearest, neighbour_radii

LINE = np.array([[0.0], [1], [3], [7]])


def cloud(count: int, seed: int, centre: float = 0.0, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, 1, (count, width))


def test_neighbours_by_hand() -> None:
    assert neighbour_radii(LINE, 1).tolist() == [1, 1, 2, 4]
    assert neighbour_radii(LINE, 3).tolist() == [7, 6, 4, 7]
    found = nearest(np.array([[2.5], [100], [0]]), LINE)
    assert found.row.tolist() == [2, 3, 0]
    assert found.distance.tolist() == [0.5, 93, 0]
    other = nearest(LINE, np.repeat(LINE, 2, axis=0), skip_equal=True)
    assert other.distance.tolist() == [1, 1, 2, 4]
    # Two equal rows are each other's neighbour.
    assert neighbour_radii(np.repeat(LINE, 2, axis=0), 1).tolist() == [0] * 8
    for k in (0, 4):
        with pytest.raises(ValueError, match="of 4 rows"):
            neighbour_radii(LINE, k)


@pytest.mark.parametrize("block", [1, 3, 50])
def test_blocks_make_no_difference(block: int) -> None:
    # Far from the origin, where distances from squares would be noise.
    x, y = cloud(17, 0) + 1e5, cloud(11, 1) + 1e5
    plain = np.linalg.norm(x[:, None] - y[None], axis=-1)
    found = np.zeros_like(plain)
    for rows, columns, distances in distance_blocks(x, y, block):
        found[rows, columns] = distances
    np.testing.assert_allclose(found, plain, rtol=1e-8)
    near = nearest(x, y, block)
    assert near.row.tolist() == plain.argmin(axis=1).tolist()
    own = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)
    np.testing.assert_allclose(neighbour_radii(x, 3, block), own[:, 3], rtol=1e-8)


def test_copies_have_distance_zero() -> None:
    x = cloud(30, 2, 3.0, 300).astype(np.float32)
    assert (nearest(x[:9], x).distance == 0).all()
    assert (nearest(x[:9] + np.float32(1e-3), x).distance > 0).all()


def test_scores_by_hand() -> None:
    # Real balls (k = 1) on a line: [-1, 1], [0, 2], [1, 5], [3, 11].
    generated = np.array([[1.5], [4.0], [20.0]])
    found = manifold_scores(generated, LINE, precision_k=1, density_k=1)
    assert found.precision.value == pytest.approx(2 / 3)
    assert found.density.value == pytest.approx((2 + 2 + 0) / 3)
    assert found.coverage.value == pytest.approx(3 / 4)
    # Generated balls: [-1, 4], [1.5, 6.5], [4, 36].
    assert found.recall.value == 1
    assert found.precision.low < 2 / 3 < found.precision.high
    assert found.recall.high == 1 and found.recall.low < 1


def test_same_and_other() -> None:
    x = cloud(60, 3)
    same = manifold_scores(x, x)
    assert same.precision.value == same.recall.value == same.coverage.value == 1
    far = manifold_scores(x, x + 100)
    assert [getattr(far, name).value for name in vars(far)] == [0, 0, 0, 0]
    # One picture again and again: precise, and of nothing else.
    collapsed = manifold_scores(np.repeat(x[:1], 20, axis=0), x)
    assert collapsed.precision.value == 1 and collapsed.recall.value == pytest.approx(1 / 60)
    with pytest.raises(ValueError, match="of 4 rows"):
        manifold_scores(x[:4], x, precision_k=4)


@pytest.mark.parametrize("k", [3, 5])
def test_prdc_agrees(k: int, capsys: pytest.CaptureFixture[str]) -> None:
    prdc = pytest.importorskip("prdc")
    real, generated = cloud(150, 4), cloud(120, 5, 0.4)
    wanted = prdc.compute_prdc(real, generated, k)
    found = manifold_scores(generated, real, k, k, block=37)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name).value == pytest.approx(wanted[name], abs=1e-12), name
    assert 0.1 < wanted["recall"] < 0.99  # so that agreement says something


def test_memorisation_by_hand() -> None:
    # Nearest 3, whose own neighbour is 1; nearest 7, neighbour 3; a copy of 1.
    generated = np.array([[3.5], [9.0], [1.0]])
    assert nearest_ratio(generated, LINE).tolist() == [0.25, 0.5, 0]
    found = memorisation(generated, LINE, held_out=np.array([[5.0], [2.0], [0.5]]))
    assert found.ratio.value == 0.25
    assert found.copies.value == pytest.approx(2 / 3)
    assert found.to_held_out is not None
    assert found.to_held_out.value == 0.5 / 1.0
    assert memorisation(generated, LINE).to_held_out is None
    # What is there twice is no yardstick for itself.
    twice = np.repeat(LINE, 2, axis=0)
    assert nearest_ratio(generated, twice).tolist() == [0.25, 0.5, 0]
    with pytest.raises(ValueError, match="all training rows are equal"):
        nearest_ratio(generated, LINE[[0, 0]])


def test_copies_are_told_from_new_pictures() -> None:
    train, new = cloud(200, 6), cloud(200, 7)
    copies = train[:40] + np.random.default_rng(8).normal(0, 0.01, (40, 8))
    found = memorisation(copies, train, held_out=new)
    assert found.copies.value == 1 and found.ratio.high < 0.1
    assert found.to_held_out is not None and found.to_held_out.high < 0.1
    fresh = memorisation(cloud(200, 9), train, held_out=new)
    assert fresh.copies.value < 0.05 and fresh.ratio.value > 0.7
    assert fresh.to_held_out is not None
    assert fresh.to_held_out.low < 1 < fresh.to_held_out.high
