"""Files from strangers, read so that neither their size nor their nesting can do harm."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from typing import Any

MAX_CONFIG = 1_000_000
"""Bytes of a config.json: Python's objects may take 20 times that."""


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A file opened for reading; nothing is waited for.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe or a device.
    """
    # Without O_NONBLOCK a pipe that nobody writes to would block for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(handle, "rb")


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """A file's bytes, `limit` of them at most.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device.
        ValueError: it is longer.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"the file has {size} bytes, the limit is {limit}")
        return file.read(size)  # a buffer for the limit would be made for every file


def parse_json(text: str | bytes) -> Any:
    """`json.loads` for text from outside.

    Raises:
        ValueError: not JSON, a name twice in an object (two readers could take different ones), or
            nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | os.PathLike[str], limit: int = MAX_CONFIG) -> Any:
    """What a JSON file holds, see `read_bounded` and `parse_json`."""
    return parse_json(read_bounded(path, limit).decode("utf-8"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found
