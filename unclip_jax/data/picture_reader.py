"""Records of a source with their pictures decoded at one size, kept in memory where they fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.images import BadImage, decode_image, resize_and_crop
from unclip_jax.data.records import Record, Source

CACHE_BYTES = 1 << 30
"""Data sets whose decoded pictures need no more than this stay in memory."""


def read_record(source: Source, index: int) -> Record:
    """The record, its picture still encoded.

    Raises:
        BadImage: it cannot be read, for whatever reason.
    """
    try:
        return source[index]
    except BadImage:
        raise
    except _UNREADABLE as error:
        raise BadImage(f"record {index}", _reason(error)) from None


def read_picture(source: Source, index: int, image_size: int) -> tuple[np.ndarray, Record]:
    """Picture [S, S, 3] uint8 and record.

    Raises:
        BadImage: it cannot be read, for whatever reason.
    """
    record = read_record(source, index)
    try:
        # Twice the size: the last halving is ours, of whatever format the picture is.
        picture = decode_image(record.image, name=record.name, least_side=2 * image_size)
        return resize_and_crop(picture, image_size), record
    except BadImage:
        raise
    except _UNREADABLE as error:
        raise BadImage(record.name, _reason(error)) from None


_UNREADABLE = (OSError, RuntimeError, ValueError, MemoryError)


def _reason(error: Exception) -> str:
    """Of a file's error the reason alone: its path would go into the list of bad records."""
    if isinstance(error, MemoryError):
        return "too large for the memory"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class PictureReader:
    """Reads from several threads; a record that could not be read is not tried again."""

    def __init__(self, source: Source, image_size: int, bad: BadRecords) -> None:
        self._source = source
        self._size = image_size
        self._bad = bad
        total = len(source)
        keep = total * image_size**2 * 3 <= CACHE_BYTES
        # np.empty takes no memory until a picture is written.
        self._pixels = np.empty((total, image_size, image_size, 3), np.uint8) if keep else None
        self._records: dict[int, Record] = {}
        self._unreadable: set[int] = set()

    @property
    def is_warm(self) -> bool:
        """All pictures are in memory, so that threads would only cost time."""
        known = len(self._records) + len(self._unreadable)
        return self._pixels is not None and known == len(self._source)

    def load(self, index: int) -> tuple[np.ndarray, Record] | None:
        """Picture [S, S, 3] uint8 and record; None, and counted, where it cannot be read."""
        if index in self._unreadable:
            return None
        if self._pixels is not None and index in self._records:
            return self._pixels[index], self._records[index]
        try:
            image, record = read_picture(self._source, index, self._size)
        except BadImage as error:
            self._unreadable.add(index)
            self._bad.add(error.name, error.reason, len(self._source))
            return None
        if self._pixels is not None:
            # Written by two threads at worst, with the same bytes; listed only when it is whole.
            self._pixels[index] = image
            self._records[index] = replace(record, image=b"")
        return image, record
