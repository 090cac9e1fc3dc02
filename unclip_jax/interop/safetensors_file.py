"""safetensors files tensor by tensor, read and written without the whole of them in memory.

The library maps a file into memory and copies a tree before it writes it: pages that were read
count as resident, and twice a stage does not fit where it fits once. The format is a length, a
JSON header with name, dtype, shape and offsets, and the bytes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.tensors import Tensor, Tensors

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # bytes; the library's own limit


def open_safetensors(path: Path) -> Tensors:
    """What the file holds; the arrays are read when they are asked for.

    Raises:
        UserError: no such file, or one that is damaged; every offset is checked.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        return {
            name: _tensor(path, name, entry, 8 + length, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error


def open_sharded(index: Path) -> Tensors:
    """The files that a `*.safetensors.index.json` names, as one.

    Raises:
        UserError: the index or one of its files cannot be read, or lies outside its folder.
    """
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(names.values()))
        outside = [file for file in files if Path(file).name != file]
        if outside:
            raise ValueError(f"it names {outside[0]!r}, which is not a file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read ({error}): restore the file") from error
    parts = {file: open_safetensors(index.parent / file) for file in files}
    for name, file in names.items():
        if name not in parts[file]:
            raise UserError(f"{index} promises {name} in {file}, which lacks it: restore the files")
    return {name: parts[file][name] for name, file in names.items()}


def write_safetensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    arrays: Iterable[tuple[str, np.ndarray]],
    dtype: np.dtype,
) -> None:
    """Write arrays as they come, each converted to `dtype`.

    The file appears under its name when it is complete.

    Args:
        shapes: of all arrays by name.
        arrays: every name once, in any order.
    """
    order = sorted(shapes)  # names of one dtype need no sorting by size to stay aligned
    offsets, start = {}, 0
    for name in order:
        offsets[name] = start
        start += int(np.prod(shapes[name], dtype=np.int64)) * dtype.itemsize
    header = {
        name: {
            "dtype": _NAMES[dtype],
            "shape": list(shapes[name]),
            "data_offsets": [offsets[name], end],
        }
        for name, end in zip(order, [*list(offsets.values())[1:], start], strict=True)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial, left = path.with_name(path.name + ".partial"), set(order)
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, array in arrays:
                if tuple(array.shape) != tuple(shapes[name]):
                    raise ValueError(f"{name} has shape {array.shape}, not {shapes[name]}")
                left.remove(name)
                file.seek(8 + len(text) + offsets[name])
                file.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8))
            if left:
                raise ValueError(f"{len(left)} arrays were not given, {min(left)} among them")
            file.truncate(8 + len(text) + start)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tensor(path: Path, name: str, entry: dict, start: int, size: int) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    count = int(np.prod(shape, dtype=np.int64))
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name} has a shape or an offset that is no number")
    if end - begin != count * dtype.itemsize or start + end > size:
        raise ValueError(f"{name} reaches beyond its bytes")
    return Tensor(shape, dtype, _reader(path, start + begin, dtype, shape, count))


def _reader(
    path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...], count: int
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        return np.fromfile(path, dtype, count, offset=offset).reshape(shape)

    return read
