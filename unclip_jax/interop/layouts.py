"""How one parameter of ours is stored elsewhere: transposed, packed, split, or layer by layer.

A layout turns the foreign arrays into ours (`read`) and ours into the foreign ones (`write`);
`write(read(x)) == x`, bit for bit. It also tells our shape from theirs, so that a file can be
checked before any of it is read.

Rows of a packed projection come in two orders: [Q | K | V] (OpenAI's and OpenCLIP's CLIP, ADM's
"new" attention), which is ours, and [q_h | k_h | v_h] head by head (GLIDE, Karlo, ADM's "legacy").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]


class Layout(Protocol):
    """What every class in this file is.

    `shape` raises ValueError where the foreign shapes cannot be such a parameter.
    """

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """Our shape from the foreign ones."""
        ...

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        """Our array from the foreign ones, of which it takes as many as it needs."""
        ...

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        """The foreign arrays from ours."""
        ...


@dataclass(frozen=True)
class Same:
    """The same array."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        return next(arrays)

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        return [array]


@dataclass(frozen=True)
class Permuted:
    """The same axes in another order."""

    axes: tuple[int, ...]
    """Which foreign axis each of ours is."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        (foreign,) = shapes
        _need(len(foreign) == len(self.axes), f"{len(self.axes)} axes")
        return tuple(foreign[axis] for axis in self.axes)

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        return next(arrays).transpose(self.axes)

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        return [array.transpose(np.argsort(self.axes))]


@dataclass(frozen=True)
class Squeezed:
    """Without axes of length 1, which the foreign array has at these places."""

    axes: tuple[int, ...]
    then: Layout = Same()

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        (foreign,) = shapes
        _need(
            len(foreign) > max(self.axes) and all(foreign[axis] == 1 for axis in self.axes),
            f"length 1 in the axes {self.axes}",
        )
        kept = tuple(n for axis, n in enumerate(foreign) if axis not in self.axes)
        return self.then.shape([kept])

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        return self.then.read(iter([next(arrays).squeeze(self.axes)]))

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        (inner,) = self.then.write(array)
        return [np.expand_dims(inner, self.axes)]


@dataclass(frozen=True)
class PerHead:
    """Rows packed head by head, [part_0 of head 0 | part_1 of head 0 | ... ], as [part_0 | ...].

    The foreign array is [parts * heads * d, ...]; ours has these rows as its *last* axis.
    """

    heads: int
    parts: int = 3
    then: Layout = Permuted((1, 0))
    """What is done to the sorted rows; a transposition for kernels, nothing for biases."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        (foreign,) = shapes
        _need(
            foreign[0] % (self.heads * self.parts) == 0,
            f"rows for {self.parts} x {self.heads} heads",
        )
        return self.then.shape(shapes)

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        return self.then.read(iter([_swapped(next(arrays), self.heads, self.parts)]))

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        (inner,) = self.then.write(array)
        return [_swapped(inner, self.parts, self.heads)]


@dataclass(frozen=True)
class Joined:
    """Several arrays side by side along our last axis: to_q, to_k, to_v as one [Q | K | V]."""

    count: int
    then: Layout = Permuted((1, 0))
    """How each of them is read."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        _need(len(shapes) == self.count, f"{self.count} tensors")
        parts = [self.then.shape([shape]) for shape in shapes]
        _need(all(part[:-1] == parts[0][:-1] for part in parts), "equal leading axes")
        return (*parts[0][:-1], sum(part[-1] for part in parts))

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        parts = [self.then.read(iter([next(arrays)])) for _ in range(self.count)]
        return np.concatenate(parts, axis=-1)

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        return [self.then.write(part)[0] for part in np.split(array, self.count, axis=-1)]


@dataclass(frozen=True)
class Stacked:
    """Equal layers as one array with a leading axis, as `nn.scan` keeps them."""

    depth: int
    each: Layout
    sources_each: int = 1
    """Foreign tensors of one layer."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        n = self.sources_each
        layers = [self.each.shape(shapes[i * n : (i + 1) * n]) for i in range(self.depth)]
        _need(all(layer == layers[0] for layer in layers), "layers of one shape")
        return (self.depth, *layers[0])

    def read(self, arrays: Iterator[np.ndarray]) -> np.ndarray:
        # Filled in place: a list of layers and its stack would be in memory together.
        first = self.each.read(arrays)
        out = np.empty((self.depth, *first.shape), first.dtype)
        out[0] = first
        del first
        for layer in range(1, self.depth):
            out[layer] = self.each.read(arrays)
        return out

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        return [part for layer in array for part in self.each.write(layer)]


DENSE = Permuted((1, 0))
"""A Linear's weight [out, in] as a kernel [in, out]."""
CONV = Permuted((2, 3, 1, 0))
"""A Conv2d's weight [out, in, h, w] as a kernel [h, w, in, out]."""
POINTWISE = Squeezed((2,), DENSE)
"""A Conv1d of width 1, [out, in, 1], as a Dense kernel."""
SAME = Same()


def _swapped(rows: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """Rows [outer * inner * d, ...] with the two packed axes swapped."""
    split = rows.reshape(outer, inner, -1, *rows.shape[1:])
    return split.swapaxes(0, 1).reshape(rows.shape)


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"needs {what}")
