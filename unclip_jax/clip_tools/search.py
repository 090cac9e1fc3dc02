"""The pictures of an index that are nearest to texts, to pictures, or to several of both.

Exact: every row is compared, one shard after the other, by a matrix product on the device. Of each
shard the best k are kept, and of those the best k of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.clip_tools.encoding import clip_config, encode_pictures, encode_texts, to_unit
from unclip_jax.clip_tools.index import PictureIndex, check_clip, open_index
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import Bundle

AHEAD = 4
"""Shards that the device may have waiting: it holds their rows."""


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    name: str
    """Relative to the folder that was indexed."""
    path: Path
    """Where it was then."""
    cosine: float


def search(
    bundle: Bundle,
    index: PictureIndex | str | Path,
    texts: Sequence[str] = (),
    pictures: Sequence[np.ndarray] = (),
    weights: Sequence[float] = (),
    k: int = 10,
) -> tuple[Hit, ...]:
    """The `k` pictures of an index that are nearest to a query, the nearest first.

    Args:
        index: one that is open, or its folder.
        texts, pictures, weights: see `embed_query`.
    Raises:
        UserError: no query, an index of another CLIP, or one that is damaged.
    """
    opened = index if isinstance(index, PictureIndex) else open_index(index)
    width = clip_config(bundle).embedding_width
    check_clip(opened.folder, opened.manifest, bundle.clip.clip_id, width)
    query = embed_query(bundle, texts, pictures, weights)
    cosines, rows = nearest_rows(opened, query[None], k)
    return find_hits(opened, cosines[0], rows[0])


def embed_query(
    bundle: Bundle,
    texts: Sequence[str],
    pictures: Sequence[np.ndarray],
    weights: Sequence[float] = (),
) -> np.ndarray:
    """The weighted sum of unit embeddings, of unit norm again: [E] float32.

    Args:
        pictures: [H, W, 3] uint8 each, of any size.
        weights: of the texts and then of the pictures; below 0 leads away; none are all equal.
    Raises:
        UserError: nothing is given, another number of weights, or everything cancels out.
    """
    count = len(texts) + len(pictures)
    if not count:
        raise UserError("there is nothing to search for: give a text, a picture, or several")
    if weights and len(weights) != count:
        raise UserError(
            f"{len(weights)} weights for {count} texts and pictures: give one for each, the texts' "
            "first"
        )
    if not np.isfinite(weights).all():
        raise UserError(f"weights are {tuple(weights)}: give finite numbers")
    parts = [encode_texts(bundle, texts)] if texts else []
    parts += [encode_pictures(bundle, pictures)] if pictures else []
    rows, factors = np.concatenate(parts), np.asarray(weights or [1.0] * count, np.float32)
    total = (rows * factors[:, None]).sum(axis=0)
    if np.linalg.norm(total) < 1e-6 * np.abs(factors).sum() or not factors.any():
        raise UserError("texts and pictures cancel each other out: give other weights")
    return to_unit(total)


def nearest_rows(index: PictureIndex, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each query the `k` rows of the greatest cosine, in order; of equals the first row.

    Args:
        queries: [Q, E] float32, unit norm.
        k: as many as there are where the index has fewer.
    Returns:
        cosines [Q, k] float32 and rows [Q, k] int64, counted through all shards.
    Raises:
        UserError: k is below 1, or a shard is damaged.
    """
    if k < 1:
        raise UserError(f"k is {k}: give 1 or more")
    entries = index.manifest.shards
    size = max((entry.rows for entry in entries), default=0)
    k = min(k, len(index))
    on_device = jnp.asarray(queries)
    cosines: list[Array | np.ndarray] = []
    rows: list[Array | np.ndarray] = []
    for place, entry in enumerate(entries):
        block = index.embeddings(place)
        padded = np.pad(block, ((0, size - len(block)), (0, 0)))  # one shape, one compilation
        found, places = _best(on_device, padded, entry.rows, min(k, size))
        cosines.append(found)
        rows.append(places)
        if place >= AHEAD:
            jax.block_until_ready(cosines[place - AHEAD])
    counts = np.cumsum([0, *(entry.rows for entry in entries)])
    every = [np.asarray(part, np.int64) + start for part, start in zip(rows, counts, strict=False)]
    return _merge(np.concatenate([np.asarray(c) for c in cosines], 1), np.concatenate(every, 1), k)


@partial(jax.jit, static_argnames="k")
def _best(queries: Array, rows: Array, count: int, k: int) -> tuple[Array, Array]:
    """The best k of the first `count` rows: cosines and places, both [Q, k]."""
    # In float32: the default of TPUs and of newer GPUs would round the factors.
    cosines = jnp.matmul(queries, rows.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)
    is_row = jnp.arange(rows.shape[0]) < count
    return jax.lax.top_k(jnp.where(is_row, cosines, -jnp.inf), k)


def _merge(cosines: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of all shards' best, [Q, shards * k'] each."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)


def find_hits(index: PictureIndex, cosines: np.ndarray, rows: np.ndarray) -> tuple[Hit, ...]:
    """Rows of an index with the names of their pictures, [k] each."""
    ends = np.cumsum([entry.rows for entry in index.manifest.shards])
    places = np.searchsorted(ends, rows, side="right")
    names = {int(place): index.names(int(place)) for place in np.unique(places)}
    hits = []
    for cosine, row, place in zip(cosines, rows, places, strict=True):
        entry = index.manifest.shards[int(place)]
        name = names[int(place)][int(row - (ends[place] - entry.rows))]
        hits.append(Hit(name, index.pictures / name, float(cosine)))
    return tuple(hits)
