"""One key a picture: picture i of a seed is the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_CHUNK = 64


def image_keys(seed: int, indices: Sequence[int]) -> Array:
    """[N] typed keys: fold_in(key(seed), index)."""
    return _fold_each(jax.random.key(seed), jnp.asarray(indices))


def stage_keys(seeds: Sequence[int], indices: Sequence[int], stages: int) -> np.ndarray:
    """[stages, N, ...] uint32 key data of fold_in(fold_in(key(seed), index), stage), each picture
    with its own seed. In chunks of one size, so that another N compiles nothing."""
    pairs = np.stack([np.asarray(seeds, np.uint32), np.asarray(indices, np.uint32)])
    chunks = np.pad(pairs, ((0, 0), (0, -len(seeds) % _CHUNK))).reshape(2, -1, _CHUNK)
    parts = [np.asarray(_fold_chunk(*chunks[:, row], stages)) for row in range(chunks.shape[1])]
    return np.concatenate(parts, axis=1)[:, : len(seeds)]


@jax.jit
def _fold_each(key: Array, numbers: Array) -> Array:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


@partial(jax.jit, static_argnums=2)
def _fold_chunk(seeds: Array, indices: Array, stages: int) -> Array:
    def fold(seed: Array, index: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), index)
        folded = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(stages))
        return jax.random.key_data(folded)

    return jnp.moveaxis(jax.vmap(fold)(seeds, indices), 1, 0)


@jax.jit
def fold_keys(keys: Array, number: int) -> Array:
    """[N] typed keys: fold_in(key, number) of each."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
