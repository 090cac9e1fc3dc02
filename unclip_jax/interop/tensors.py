"""Named tensors that are read from a file when they are asked for, one at a time.

A checkpoint of several gigabytes is never in memory as a whole: what is known at once are names,
shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """As stored; bfloat16 is ml_dtypes'."""
    read: Callable[[], np.ndarray]
    """Reads it from the file: [*shape], a new array."""


Tensors = dict[str, Tensor]
"""A state dict by name."""


def from_arrays(arrays: dict[str, np.ndarray]) -> Tensors:
    """Arrays that are in memory already, behind the same face."""

    def tensor(array: np.ndarray) -> Tensor:
        return Tensor(array.shape, array.dtype, lambda: array)

    return {name: tensor(np.asarray(array)) for name, array in arrays.items()}


def without_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Those whose name begins with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The same under longer names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def read_all(tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """Every name with its array, in order, one in memory at a time."""
    for name, tensor in tensors.items():
        yield name, tensor.read()
