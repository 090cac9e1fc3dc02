"""PCA against numpy's SVD, buckets against their definition, draws against the data's shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.errors import UserError
from unclip_jax.models.embedding_codes import (
    CodeConfig,
    EmbeddingCodes,
    Moments,
    add_moments,
    decode,
    draw_dot,
    encode,
    encode_dot,
    fit_codes,
    principal_axes,
)

WIDTH, ROWS = 12, 300
CONFIG = CodeConfig(components=5, buckets=16, dot_buckets=10)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def make_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors with a mean and a falling spectrum along random directions, and texts nearby."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    spectrum = 0.6 ** np.arange(WIDTH)
    image = unit((rng.standard_normal((ROWS, WIDTH)) * spectrum + 0.3) @ rotation)
    return image, unit(image + 0.2 * rng.standard_normal(image.shape))


IMAGE, TEXT = make_pairs()


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, ROWS, 70):  # the last batch is smaller
        yield IMAGE[start : start + 70], TEXT[start : start + 70]


def moments_of(x: np.ndarray) -> Moments:
    return add_moments(add_moments(None, x[:100]), x[100:])


def svd_axes(centered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the second moment and axes, from the SVD of the data matrix."""
    x = IMAGE - IMAGE.mean(axis=0) if centered else IMAGE
    _, singular, axes = np.linalg.svd(x, full_matrices=False)
    return singular**2 / ROWS, axes


@pytest.fixture(scope="module")
def codes() -> EmbeddingCodes:
    return fit_codes(batches, CONFIG)


# -- principal components


@pytest.mark.parametrize("centered", [False, True])
def test_axes_are_those_of_the_svd(centered: bool) -> None:
    config = replace(CONFIG, components=WIDTH - 1, centered=centered)
    mean, axes = principal_axes(moments_of(IMAGE), config)
    expected = svd_axes(centered)[1][: WIDTH - 1]
    np.testing.assert_allclose(np.abs(axes @ expected.T), np.eye(WIDTH - 1), atol=1e-7)
    np.testing.assert_allclose(mean, IMAGE.mean(axis=0) * centered, atol=1e-12)


def test_fewer_components_are_the_first_of_more() -> None:
    many, few = (
        principal_axes(moments_of(IMAGE), replace(CONFIG, components=count))[1] for count in (8, 3)
    )
    np.testing.assert_array_equal(many[:3], few)


def test_an_axis_points_to_its_largest_entry() -> None:
    """The sign that the eigenvalue routine happens to return does not matter."""
    _, axes = principal_axes(moments_of(IMAGE), replace(CONFIG, components=WIDTH))
    assert (axes.max(axis=1) == np.abs(axes).max(axis=1)).all()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("max_error", [0.5, 0.1, 0.01, 1e-4, 0.0])
def test_components_are_the_fewest_for_the_error(max_error: float, centered: bool) -> None:
    config = replace(CONFIG, components=None, max_error=max_error, centered=centered)
    mean, axes = principal_axes(moments_of(IMAGE), config)
    x = IMAGE - mean

    def error(count: int) -> float:
        kept = svd_axes(centered)[1][:count]
        return float(np.sum((x - x @ kept.T @ kept) ** 2) / np.sum(x**2))

    assert error(len(axes)) <= max_error + 1e-14
    assert len(axes) == 1 or error(len(axes) - 1) > max_error


def test_reconstruction_has_the_error_that_was_asked_for() -> None:
    fine = replace(CONFIG, components=None, max_error=0.01, buckets=4096)
    fitted = fit_codes(batches, fine)
    x = jnp.asarray(IMAGE, jnp.float32)
    error = np.mean(np.sum((np.asarray(decode(fitted, encode(fitted, x))) - IMAGE) ** 2, axis=1))
    assert 0.001 < error < 0.01  # of unit vectors: their mean square is 1


# -- buckets


def test_codes_are_the_bucket_of_each_component(codes: EmbeddingCodes) -> None:
    values = IMAGE @ np.asarray(codes.axes, np.float64).T
    low, high = values.min(axis=0), values.max(axis=0)
    place = (values - low) / (high - low) * CONFIG.buckets
    clear = np.abs(place - np.round(place)) > 1e-3  # not at an edge, where rounding decides
    found = np.asarray(encode(codes, jnp.asarray(IMAGE, jnp.float32)))
    assert found.dtype == np.int32 and clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], np.floor(place)[clear])
    assert found.min() == 0 and found.max() == CONFIG.buckets - 1


def test_round_trip_is_within_half_a_bucket(codes: EmbeddingCodes) -> None:
    axes = np.asarray(codes.axes, np.float64)
    back = np.asarray(decode(codes, encode(codes, jnp.asarray(IMAGE, jnp.float32))), np.float64)
    error = np.abs((back - IMAGE) @ axes.T)
    half = np.diff(np.asarray(codes.edges), axis=1)[:, 0] / 2
    assert (error <= half + 1e-6).all() and error.max() > 0.9 * half.min()
    outside = back - back @ axes.T @ axes
    np.testing.assert_allclose(outside, 0, atol=1e-6)


@pytest.mark.parametrize("centered", [False, True])
def test_encode_undoes_decode(centered: bool) -> None:
    fitted = fit_codes(batches, replace(CONFIG, centered=centered))
    tokens = np.random.default_rng(1).integers(0, CONFIG.buckets, (50, 5))
    found = encode(fitted, decode(fitted, jnp.asarray(tokens)))
    np.testing.assert_array_equal(found, tokens)


def test_values_beyond_the_range_are_in_the_outer_buckets(codes: EmbeddingCodes) -> None:
    far = 10 * jnp.stack([codes.axes.sum(axis=0), -codes.axes.sum(axis=0)])
    found = np.asarray(encode(codes, far))
    assert (found[0] == CONFIG.buckets - 1).all() and (found[1] == 0).all()


def test_edges_of_a_component_or_of_all(codes: EmbeddingCodes) -> None:
    own = np.asarray(codes.edges)
    shared = np.asarray(fit_codes(batches, replace(CONFIG, edges="shared")).edges)
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[0], shared.shape))
    np.testing.assert_allclose(shared[0, [0, -1]], [own.min(), own.max()], rtol=1e-6)
    assert (own[0] != own[1]).any()
    assert (np.diff(own, axis=1) > 0).all()


def test_a_component_that_never_varies_is_kept_exactly() -> None:
    same = np.tile(np.eye(WIDTH)[:1], (20, 1))
    fitted = fit_codes(lambda: [(same, same)], replace(CONFIG, components=1, buckets=1024))
    x = jnp.asarray(same[:1], jnp.float32)
    np.testing.assert_allclose(decode(fitted, encode(fitted, x)), x, atol=1e-6)


# -- the dot product


def test_dot_tokens_and_their_shares(codes: EmbeddingCodes) -> None:
    dots = np.sum(IMAGE * TEXT, axis=1)
    expected, edges = np.histogram(dots, CONFIG.dot_buckets)
    np.testing.assert_allclose(codes.dot_edges, edges, rtol=1e-6)
    np.testing.assert_allclose(codes.dot_shares, expected / ROWS, rtol=1e-6)
    pair = (jnp.asarray(IMAGE, jnp.float32), jnp.asarray(TEXT, jnp.float32))
    found = np.asarray(encode_dot(codes, *pair))
    np.testing.assert_array_equal(found[np.argsort(dots)], np.sort(found))
    # float32 may move a value that lies on an edge by one bucket: the two ends of the range do.
    counts = np.bincount(found, minlength=CONFIG.dot_buckets)
    assert np.abs(counts - expected).sum() <= 2


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.85])
def test_dot_is_drawn_from_above_the_quantile(quantile: float, codes: EmbeddingCodes) -> None:
    shares = np.array([0.0, 0.1, 0.3, 0.0, 0.2, 0.4, 0.0])
    codes = replace(codes, dot_shares=jnp.asarray(shares, jnp.float32))
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    found = np.bincount(np.asarray(draw_dot(codes, keys, quantile)), minlength=7) / draws
    above = np.maximum(np.cumsum(shares), quantile)
    expected = np.diff(above, prepend=quantile) / (1 - quantile)
    sigma = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 5 * sigma + 1e-6).all()


def test_a_draw_depends_on_its_own_key_only(codes: EmbeddingCodes) -> None:
    keys = jax.random.split(jax.random.key(1), 8)
    whole = np.asarray(draw_dot(codes, keys))
    for row in (0, 5):
        np.testing.assert_array_equal(draw_dot(codes, keys[row : row + 1]), whole[row : row + 1])
    assert len(set(whole.tolist())) > 1


# -- as a tree, and what is refused


def test_codes_are_a_tree_of_named_arrays(codes: EmbeddingCodes) -> None:
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(codes)
    }
    shapes = {
        "mean": (WIDTH,),
        "axes": (5, WIDTH),
        "edges": (5, CONFIG.buckets + 1),
        "dot_edges": (CONFIG.dot_buckets + 1,),
        "dot_shares": (CONFIG.dot_buckets,),
    }
    assert found == {name: (shape, jnp.float32) for name, shape in shapes.items()}


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="no embeddings"):
        fit_codes(list, CONFIG)
    with pytest.raises(UserError, match="4 embeddings"):
        fit_codes(lambda: [(IMAGE[:4], TEXT[:4])], CONFIG)
    with pytest.raises(UserError, match="width 12"):
        fit_codes(batches, replace(CONFIG, components=13))


@pytest.mark.parametrize(
    "change", [{"components": 0}, {"max_error": 1.0}, {"buckets": 1}, {"dot_buckets": 0}]
)
def test_wrong_configs_are_refused(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        replace(CONFIG, **change)
