"""CLIP image embeddings as a sequence of discrete codes, for the autoregressive prior.

Ramesh et al. 2022, section 2.2: PCA keeps 319 of 1,024 components at a reconstruction error below
1 %; they are ordered by decreasing eigenvalue and each is quantised into 1,024 buckets. The dot
product of image and text embedding becomes a token too; at sampling it is drawn from the top half
of its distribution. The paper leaves the buckets' edges open: here they are uniform over the range
that the data has.

Fitting is float64 numpy in two passes over the data and happens once, before training. Encoding
and decoding are pure functions of `EmbeddingCodes`, a tree of arrays that belongs to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.limits import check_sizes

Pairs = Iterable[tuple[np.ndarray, np.ndarray]]
"""Batches of (image embeddings [B, D], text embeddings [B, D]), unit norm, rows that belong."""

# An accelerator's default rounds the factors of a matrix product to 8 or 11 bits, and the value of
# a component decides between 1,024 buckets.
EXACT = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class CodeConfig:
    """How embeddings become codes."""

    components: int | None = None
    """Principal components that are kept; None takes as few as `max_error` allows."""
    max_error: float = 0.01
    """Largest mean squared error of the reconstruction without quantisation, as a share of the
    mean square (with `centered`: of the variance). Only read when `components` is None."""
    buckets: int = 1024
    """Codes of a component."""
    dot_buckets: int = 1024
    """Tokens of the dot product; the paper does not say how many."""
    centered: bool = False
    """Subtract the mean embedding first. The paper does not mention it."""
    edges: Literal["per_component", "shared"] = "per_component"
    """Range of the buckets: that of each component, or one for all."""

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.components is not None and self.components < 1:
            raise UserError(f"components is {self.components}: give 1 or more, or None")
        if not 0 <= self.max_error < 1:
            raise UserError(f"max_error is {self.max_error}: give a share from 0 up to 1")
        if self.buckets < 2 or self.dot_buckets < 2:
            raise UserError(
                f"buckets is {self.buckets} and dot_buckets {self.dot_buckets}: give 2 or more"
            )


@dataclass(frozen=True, eq=False)
class EmbeddingCodes:
    """The fitted basis and edges: K components of D dimensions, float32."""

    mean: Array
    """[D], zero unless centred."""
    axes: Array
    """[K, D], orthonormal rows by decreasing eigenvalue."""
    edges: Array
    """[K, buckets + 1], increasing. Values beyond the ends belong to the last bucket there."""
    dot_edges: Array
    """[dot_buckets + 1], increasing."""
    dot_shares: Array
    """[dot_buckets], share of the data that has each token of the dot product."""


jax.tree_util.register_dataclass(EmbeddingCodes)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the embeddings seen so far, float64; those of two shards of the data add up."""

    count: int
    sum: np.ndarray
    """[D]."""
    outer: np.ndarray
    """[D, D], sum of outer products."""


def add_moments(moments: Moments | None, embeddings: np.ndarray) -> Moments:
    """`moments` and one more batch.

    Args:
        moments: None before the first batch.
        embeddings: [B, D].
    """
    x = np.asarray(embeddings, np.float64)
    if moments is None:
        return Moments(len(x), x.sum(axis=0), x.T @ x)
    return Moments(moments.count + len(x), moments.sum + x.sum(axis=0), moments.outer + x.T @ x)


def principal_axes(moments: Moments, config: CodeConfig) -> tuple[np.ndarray, np.ndarray]:
    """The mean that is subtracted [D] and the principal axes [K, D], float64.

    The axes are the eigenvectors of the second moment E[z z^T], or of the covariance if centred. A
    reconstruction from K of them has the sum of the other eigenvalues as its mean squared error.

    Raises:
        UserError: more components than dimensions or embeddings.
    """
    width = len(moments.sum)
    mean = moments.sum / moments.count if config.centered else np.zeros(width)
    matrix = moments.outer / moments.count - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(matrix)  # increasing
    values, axes = np.maximum(values[::-1], 0), vectors[:, ::-1].T
    components = config.components
    if components is None:
        # Sums from the small end: a total minus nearly all of itself would be rounding error.
        error = np.append(np.cumsum(values[::-1])[::-1], 0.0)  # [k] with k components kept
        allowed = error <= config.max_error * error[0]
        components = max(1, int(np.argmax(allowed)))
    if components > min(width, moments.count):
        raise UserError(
            f"components is {components}, but there are {moments.count} embeddings of width "
            f"{width}: keep fewer components or fit on more data"
        )
    axes = axes[:components]
    # An eigenvector's sign is arbitrary: fix it, so that a fit is the same on every machine.
    largest = np.abs(axes).argmax(axis=1)
    signs = np.sign(axes[np.arange(components), largest])
    return mean, axes * signs[:, None]


def fit_codes(batches: Callable[[], Pairs], config: CodeConfig) -> EmbeddingCodes:
    """PCA, buckets and the distribution of the dot product, from two passes over the data.

    Args:
        batches: called twice; each time one pass over the same pairs.
    Raises:
        UserError: no data, or more components than the data has.
    """
    moments = None
    dot_low, dot_high = np.inf, -np.inf
    for image, text in batches():
        moments = add_moments(moments, image)
        dots = _dots(image, text)
        dot_low, dot_high = min(dot_low, dots.min()), max(dot_high, dots.max())
    if moments is None:
        raise UserError("there are no embeddings to fit the codes on: check the data")
    mean, axes = principal_axes(moments, config)
    dot_edges = _uniform_edges(np.array([dot_low]), np.array([dot_high]), config.dot_buckets)[0]

    low, high = np.full(len(axes), np.inf), np.full(len(axes), -np.inf)
    counts = np.zeros(config.dot_buckets, np.int64)
    for image, text in batches():
        values = (np.asarray(image, np.float64) - mean) @ axes.T
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        tokens = np.searchsorted(dot_edges[1:-1], _dots(image, text), side="right")
        counts += np.bincount(tokens, minlength=config.dot_buckets)
    if config.edges == "shared":
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    return EmbeddingCodes(
        mean=jnp.asarray(mean, jnp.float32),
        axes=jnp.asarray(axes, jnp.float32),
        edges=jnp.asarray(_uniform_edges(low, high, config.buckets), jnp.float32),
        dot_edges=jnp.asarray(dot_edges, jnp.float32),
        dot_shares=jnp.asarray(counts / counts.sum(), jnp.float32),
    )


def encode(codes: EmbeddingCodes, embeddings: Array) -> Array:
    """[B, D] float32, unit norm → [B, K] int32, the bucket of each component."""
    values = jnp.matmul(embeddings - codes.mean, codes.axes.T, precision=EXACT)
    return jax.vmap(_bucket, in_axes=(0, 1), out_axes=1)(codes.edges, values)


def decode(codes: EmbeddingCodes, tokens: Array) -> Array:
    """[B, K] int32 → [B, D] float32, from the middles of the buckets; not normalised."""
    middles = (codes.edges[:, :-1] + codes.edges[:, 1:]) / 2
    values = middles[jnp.arange(middles.shape[0]), tokens]
    return codes.mean + jnp.matmul(values, codes.axes, precision=EXACT)


def encode_dot(codes: EmbeddingCodes, image: Array, text: Array) -> Array:
    """Token of the dot product: [B, D] and [B, D] float32, unit norm → [B] int32."""
    dots = jnp.einsum("bd,bd->b", image, text, precision=EXACT)
    return _bucket(codes.dot_edges, dots)


def draw_dot(codes: EmbeddingCodes, keys: Array, quantile: float = 0.5) -> Array:
    """Tokens from the part of the data's distribution above `quantile`.

    The paper swept the percentiles 50, 70, 85 and 95 and found 50 best.

    Args:
        keys: [B] typed keys.
        quantile: in [0, 1); 0 draws from the whole distribution.
    Returns:
        [B] int32.
    """
    cumulative = jnp.cumsum(codes.dot_shares)
    cumulative = cumulative / cumulative[-1]
    uniform = jax.vmap(jax.random.uniform)(keys)
    # In (quantile, 1]: never an empty bucket, and 1 is the last that is not empty.
    level = 1 - (1 - quantile) * uniform
    return jnp.searchsorted(cumulative, level, side="left").astype(jnp.int32)


def _bucket(edges: Array, values: Array) -> Array:
    """Index of the bucket that holds each value; the outer edges do not bound."""
    return jnp.searchsorted(edges[1:-1], values, side="right").astype(jnp.int32)


def _uniform_edges(low: np.ndarray, high: np.ndarray, buckets: int) -> np.ndarray:
    """[K, buckets + 1] float64; a range without width becomes a small one around its value."""
    half = np.maximum((high - low) / 2, 1e-4)
    middle = (low + high) / 2
    return np.linspace(middle - half, middle + half, buckets + 1, axis=-1)


def _dots(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    return np.einsum("bd,bd->b", np.asarray(image, np.float64), np.asarray(text, np.float64))
