"""Dropout by a hash: the right share, no pattern, the same bits for the same key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.models.layers import Dropout, mix_bits

SHAPE = (64, 32, 32, 8)


def drop(rate: float, seed: int, x: np.ndarray | None = None) -> np.ndarray:
    x = np.ones(SHAPE, np.float32) if x is None else x
    return np.asarray(Dropout(rate).apply({}, x, rngs={"dropout": jax.random.key(seed)}))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_right_share_everywhere(rate: float) -> None:
    kept = drop(rate, 0) > 0
    count = kept.size
    for axis in range(4):  # of every row, line, column and channel
        others = tuple(i for i in range(4) if i != axis)
        shares = kept.mean(axis=others)
        deviation = np.sqrt(rate * (1 - rate) / (count / SHAPE[axis]))
        assert np.abs(shares - (1 - rate)).max() < 5 * deviation
    assert drop(rate, 0).mean() == pytest.approx(1, abs=5 * np.sqrt(rate / (1 - rate) / count))


def test_no_pattern() -> None:
    """Neighbours in every direction, rows and keys are uncorrelated; runs are as long as chance."""
    mask = (drop(0.5, 0) > 0) * 2.0 - 1
    for axis in range(4):
        for shift in (1, 2, 4, 7):
            product = (mask * np.roll(mask, shift, axis)).mean()
            assert abs(product) < 5 / np.sqrt(mask.size)
    other = (drop(0.5, 1) > 0) * 2.0 - 1
    assert abs((mask * other).mean()) < 5 / np.sqrt(mask.size)
    triples = (mask[..., :-2] * mask[..., 1:-1] * mask[..., 2:]).mean()
    assert abs(triples) < 5 / np.sqrt(mask.size)


def test_the_same_key_drops_the_same() -> None:
    np.testing.assert_array_equal(drop(0.3, 5), drop(0.3, 5))
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    dropped = drop(0.3, 5, x)
    np.testing.assert_array_equal(dropped, np.where(drop(0.3, 5) > 0, x / np.float32(0.7), 0))
    assert drop(0.0, 0, x) is not None and np.array_equal(drop(0.0, 0, x), x)
    np.testing.assert_array_equal(Dropout(0.3, deterministic=True).apply({}, x), x)


def test_the_hash_is_a_permutation_that_avalanches() -> None:
    values = np.arange(2**16, dtype=np.uint32)
    mixed = np.asarray(mix_bits(jnp.asarray(values)))
    assert len(set(mixed.tolist())) == 2**16
    for bit in range(32):
        flipped = np.asarray(mix_bits(jnp.asarray(values ^ np.uint32(1 << bit)))) ^ mixed
        shares = [np.mean(flipped >> np.uint32(out) & 1) for out in range(32)]
        assert min(shares) > 0.4 and max(shares) < 0.6
