"""Files from strangers, read so that neither their size nor their nesting can do harm."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

MAX_CONFIG = 1_000_000
"""Bytes of a config.json: Python's objects may take 20 times that."""


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """A file's bytes, `limit` of them at most.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer, or is a folder, a pipe or a device.
    """
    # Without O_NONBLOCK a pipe that nobody writes to would block for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("not a regular file")
        if facts.st_size > limit:
            raise ValueError(f"the file has {facts.st_size} bytes, the limit is {limit}")
        with open(handle, "rb", closefd=False) as file:
            return file.read(facts.st_size)  # a buffer for the limit would be made for every file
    finally:
        os.close(handle)


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
