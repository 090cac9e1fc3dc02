"""safetensors files tensor by tensor, read and written without the whole of them in memory.

The library maps a file into memory and copies a tree before it writes it: pages that were read
count as resident, and twice a stage does not fit where it fits once. The format is a length, a
JSON header with name, dtype, shape and offsets, and the bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.files import whole_file
from unclip_jax.interop.tensors import Tensor, Tensors

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # bytes; the library's own limit
_MOST_DIMENSIONS = 32

_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,  # of a deeply nested header
    struct.error,
)


def open_safetensors(path: Path) -> Tensors:
    """What the file holds; the arrays are read when they are asked for.

    Raises:
        UserError: no such file, or one that is damaged; every offset is checked, and as in the
            library the tensors must fill the file without gap or overlap.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        _check_offsets(header, size - 8 - length)
        return {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error


def open_sharded(index: Path, open_part: Callable[[Path], Tensors] = open_safetensors) -> Tensors:
    """The files that a `*.safetensors.index.json` names, as one.

    Args:
        open_part: opens each of them.
    Raises:
        UserError: the index or one of its files cannot be read, or lies outside its folder.
    """
    try:
        text = index.read_text(encoding="utf-8")
        names = json.loads(text, object_pairs_hook=_unique).get("weight_map")
        if not isinstance(names, dict):
            raise ValueError("it has no weight_map, which an index of weights has")
        files = sorted(set(names.values()))
        outside = [file for file in files if not _is_beside(file)]
        if outside:
            raise ValueError(f"it names {outside[0][:80]!r}, which is not a file beside it")
    except _DAMAGED as error:
        raise UserError(f"{index} cannot be read ({error}): restore the file") from error
    parts = {file: open_part(index.parent / file) for file in files}
    for name, file in names.items():
        if name not in parts[file]:
            raise UserError(
                f"{index} promises {name!r} in {file!r}, which lacks it: restore the files"
            )
    return {name: parts[file][name] for name, file in names.items()}


def _is_beside(file: str) -> bool:
    """The name of a file, and no path; '..' is its own last part, and some names no disk takes."""
    is_name = Path(file).name == file and file not in ("", "..") and len(os.fsencode(file)) < 256
    return is_name and file.isprintable()


def write_safetensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    arrays: Iterable[tuple[str, np.ndarray]],
    dtype: np.dtype,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays as they come, each converted to `dtype`.

    The file appears under its name when it is complete.

    Args:
        shapes: of all arrays by name.
        arrays: every name once, in any order.
        metadata: texts for the header; {"format": "pt"} is what PyTorch's libraries expect.
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
    if metadata:
        header = {"__metadata__": dict(metadata), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    left = set(order)
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, array in arrays:
            if tuple(array.shape) != tuple(shapes[name]):
                raise ValueError(f"{name} has shape {array.shape}, not {shapes[name]}")
            left.remove(name)
            file.seek(8 + len(text) + offsets[name])
            file.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
        if left:
            raise ValueError(f"{len(left)} arrays were not given, {min(left)} among them")
        file.truncate(8 + len(text) + start)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of the header; two readers could take different ones of two equal names."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _check_offsets(header: dict, available: int) -> None:
    """The tensors lie one after the other and fill the file."""
    reached = 0
    for begin, end, name in sorted(
        (*entry["data_offsets"], name) for name, entry in header.items()
    ):
        if type(begin) is not int or type(end) is not int or begin != reached or end < begin:
            raise ValueError(f"{name!r} does not begin where the tensor before it ends")
        reached = end
    if reached != available:
        raise ValueError(f"its tensors have {reached} bytes, the file {available}")


def _tensor(path: Path, name: str, entry: dict, start: int) -> Tensor:
    dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
    if dtype is None:
        raise ValueError(f"{name!r} has the unknown dtype {entry['dtype']!r}")
    begin, end = entry["data_offsets"]
    if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"{name!r} has a shape that is no list of numbers")
    # Python's integers: a product of 64 bits can wrap around to the right one.
    if len(shape) > _MOST_DIMENSIONS or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} of shape {shape} and {entry['dtype']} has {end - begin} bytes")
    return Tensor(tuple(shape), dtype, _reader(path, start + begin, dtype, tuple(shape)))


def _reader(
    path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        try:
            return np.fromfile(path, dtype, math.prod(shape), offset=offset).reshape(shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read any more ({error}): restore the file"
            ) from error

    return read
