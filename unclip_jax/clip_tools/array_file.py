"""A table of numbers as a .npy file, read with nothing evaluated."""

from __future__ import annotations

import io
import re

import numpy as np

MAX_ARRAY = 1 << 30
"""Bytes of a file."""
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '(<f[24])', 'fortran_order': False, 'shape': \(([0-9]{1,12}), ([0-9]{1,12})\), \}"
    rb" *\n",
    re.DOTALL,
)
"""As numpy.save writes it for a table of float16 or float32, its length first."""


def pack_rows(rows: np.ndarray) -> bytes:
    """[n, E] float16 or float32 as the bytes of a .npy file, little-endian."""
    out = io.BytesIO()
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    np.lib.format.write_array(out, little, version=(1, 0), allow_pickle=False)
    return out.getvalue()


def unpack_rows(raw: bytes, shape: tuple[int, int], dtype: str) -> np.ndarray:
    """The inverse of `pack_rows`, without copying.

    The header is compared with what is expected: numpy evaluates it as Python text, which takes
    hostile ones badly. So it can promise no more than the file holds.

    Args:
        dtype: float16 or float32.
    Raises:
        ValueError: not such a file, or numbers that are not finite.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    header = _HEADER.match(raw)
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
        raise ValueError("not a table of float16 or float32 as numpy.save writes it")
    if header[2].decode() != kind.str or (int(header[3]), int(header[4])) != shape:
        raise ValueError(f"not {shape[0]} x {shape[1]} numbers of {dtype}")
    size = header.end() + shape[0] * shape[1] * kind.itemsize
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes where its header announces {size}")
    rows = np.frombuffer(raw, kind, offset=header.end()).reshape(shape)
    if not np.isfinite(rows).all():
        raise ValueError("not all of its numbers are finite")
    return rows
