"""torch's storages: the bytes of an archive that tensors are strided views of.

A tensor is (storage, offset, shape, strides), the last three in elements. Several tensors can share
a storage; a transposed one keeps its storage and swaps its strides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.restricted_pickle import Refused
from unclip_jax.interop.tensors import Tensor
from unclip_jax.interop.zip_index import Span

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
"""By torch's names."""
STORAGES: dict[str, np.dtype | None] = {
    "torch.DoubleStorage": DTYPES["float64"],
    "torch.FloatStorage": DTYPES["float32"],
    "torch.HalfStorage": DTYPES["float16"],
    "torch.BFloat16Storage": DTYPES["bfloat16"],
    "torch.LongStorage": DTYPES["int64"],
    "torch.IntStorage": DTYPES["int32"],
    "torch.ShortStorage": DTYPES["int16"],
    "torch.CharStorage": DTYPES["int8"],
    "torch.ByteStorage": DTYPES["uint8"],
    "torch.BoolStorage": DTYPES["bool"],
    "torch.ComplexFloatStorage": DTYPES["complex64"],
    "torch.ComplexDoubleStorage": DTYPES["complex128"],
    "torch.storage.UntypedStorage": None,
    "torch.UntypedStorage": None,
}
"""torch's storage classes; an untyped one counts bytes, and the tensor says of what."""

_MOST_DIMENSIONS = 32
_LARGEST = 2**62  # bytes, and 64-bit arithmetic stays exact
_LARGEST_EXPANDED = 16 * 2**20
"""Bytes that a tensor may have beyond its storage: one number, expanded, could be any number."""


@dataclass(frozen=True)
class Storage:
    """One entry of the archive."""

    path: Path
    span: Span
    dtype: np.dtype | None
    is_swapped: bool
    """Written on a machine with the other byte order."""

    def tensor(self, offset: int, shape: object, strides: object, dtype: np.dtype) -> Tensor:
        """A view, read when it is asked for.

        Raises:
            Refused: it reaches beyond the storage, or is far larger than it.
        """
        sizes, steps = _sizes(shape), _sizes(strides)
        if len(sizes) == len(steps):  # along an axis of length 1 a stride says nothing
            steps = tuple(step if n > 1 else 0 for n, step in zip(sizes, steps, strict=True))
        view = _View(self, dtype, offset, sizes, steps)
        return Tensor(view.shape, dtype, view.read)


@dataclass(frozen=True)
class _View:
    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.strides) or len(self.shape) > _MOST_DIMENSIONS:
            raise Refused(f"a tensor has {len(self.shape)} sizes and {len(self.strides)} strides")
        if type(self.offset) is not int or self.offset < 0:
            raise Refused("a tensor begins nowhere")
        width, available = self.dtype.itemsize, self.storage.span.size
        if math.prod(max(n, 1) for n in self.shape) * width > _LARGEST:
            raise Refused("a tensor claims more bytes than there are")
        if self.count and (self.offset + self.extent) * width > available:
            raise Refused(f"a tensor of shape {self.shape} reaches beyond its {available} bytes")
        if self.count * width > max(available, _LARGEST_EXPANDED):
            raise Refused(f"a tensor of shape {self.shape} is expanded from {available} bytes")

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements from the first to the last."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def is_dense(self) -> bool:
        """Every element of the extent occurs once, in whatever order of the axes."""
        expected = 1
        for stride, n in sorted(zip(self.strides, self.shape, strict=True)):
            if n > 1 and stride != expected:
                return False
            expected *= n
        return True

    def read(self) -> np.ndarray:
        if not self.count:
            return np.empty(self.shape, self.dtype)
        start = self.storage.span.offset + self.offset * self.dtype.itemsize
        try:
            if self.is_dense:
                flat = np.fromfile(self.storage.path, self.dtype, self.extent, offset=start)
                if flat.size != self.extent:
                    raise ValueError("it is shorter than it was")
                return self._strided(self._native(flat))
            # Of a slice of something large only the pages that it touches are read.
            mapped = np.memmap(self.storage.path, self.dtype, "r", start, (self.extent,))
            copied = np.array(self._strided(mapped), order="C", subok=False)
            return self._native(copied.reshape(-1)).reshape(self.shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.storage.path} cannot be read any more ({error}): restore the file"
            ) from error

    def _strided(self, flat: np.ndarray) -> np.ndarray:
        width = self.dtype.itemsize
        strides = [stride * width for stride in self.strides]
        return np.ndarray(self.shape, self.dtype, flat, strides=strides)

    def _native(self, flat: np.ndarray) -> np.ndarray:
        width = self.dtype.itemsize // (2 if self.dtype.kind == "c" else 1)
        if self.storage.is_swapped and width > 1:
            flat.view(f"u{width}").byteswap(inplace=True)
        return flat


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is not tuple or any(type(n) is not int or n < 0 for n in value):
        raise Refused("a tensor has a shape or strides that are no numbers")
    return value
