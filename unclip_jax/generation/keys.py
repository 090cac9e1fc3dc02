"""One key a picture: picture i of a seed is the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def image_keys(seed: int, indices: Sequence[int]) -> Array:
    """[N] typed keys: fold_in(key(seed), index)."""
    return _fold_each(jax.random.key(seed), jnp.asarray(indices))


def request_keys(seeds: Sequence[int], indices: Sequence[int]) -> Array:
    """[N] typed keys: fold_in(key(seed), index), each picture with its own seed."""
    return _fold_seeds(np.asarray(seeds, np.uint32), jnp.asarray(indices))


@jax.jit
def _fold_each(key: Array, numbers: Array) -> Array:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


@jax.jit
def _fold_seeds(seeds: Array, numbers: Array) -> Array:
    def fold(seed: Array, number: Array) -> Array:
        return jax.random.fold_in(jax.random.key(seed), number)

    return jax.vmap(fold)(seeds, numbers)


@jax.jit
def fold_keys(keys: Array, number: int) -> Array:
    """[N] typed keys: fold_in(key, number) of each."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
