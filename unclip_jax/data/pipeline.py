"""Records to batches: which example comes next, drawn captions, decoded pictures, tokens.

The position in the data is one integer, the number of examples consumed by all processes together.
Example g (0, 1, 2, ...) is record `order[g]` of an order that is shuffled anew each epoch, with a
caption drawn from (seed, g); a batch is `batch_size` consecutive examples, and process p of P reads
the p-th of P equal parts of it. So neither the number of processes nor of threads changes what a
step sees, and a run resumes anywhere exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import numpy as np

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import draw_caption
from unclip_jax.data.images import BadImage, decode_image, resize_and_crop
from unclip_jax.data.records import Record, Source
from unclip_jax.errors import UserError

Batch = dict[str, np.ndarray]
Tokenize = Callable[[Sequence[str]], np.ndarray]

CACHE_BYTES = 1 << 30
"""Data sets whose decoded pictures need no more than this stay in memory."""
REPLACEMENTS = 100
"""Other records that are tried in the place of one that cannot be read."""


def make_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    tokenize: Tokenize,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
    bad: BadRecords | None = None,
    shuffle: bool = True,
    repeat: bool = True,
) -> Iterator[Batch]:
    """This process's part of every batch, made ahead of time in the background.

    Args:
        batch_size: examples of a batch over all processes; a multiple of `process_count`.
        tokenize: texts → [n, L] int32.
        start: examples that all processes together have consumed before.
        bad: where pictures that cannot be read are counted; each is replaced by another record,
            chosen by (seed, example). None counts them without a list and never stops.
        repeat: go on for ever, each epoch in another order; otherwise one epoch, whose last batch
            is short (and so may be the parts of the processes).
    Yields:
        image: [b, image_size, image_size, 3] uint8, b = batch_size / process_count.
        tokens: [b, L] int32.
    Raises:
        UserError: too many pictures cannot be read, the data set is empty, or `batch_size` does not
            divide.
    """
    import grain

    total = len(source)
    if total == 0:
        raise UserError("the data set is empty")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} is not a multiple of the {process_count} processes"
        )
    order = grain.MapDataset.range(total).seed(seed)
    order = order.shuffle() if shuffle else order
    order = order.repeat() if repeat else order
    reader = _Reader(source, image_size, seed, bad or BadRecords())
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")

    def load(step: int) -> Batch:
        first = start + step * batch_size
        last = first + batch_size if repeat else min(first + batch_size, total)
        examples = _part(first, last, process_index, process_count)
        indices = [cast(int, order[g]) for g in examples]
        pairs = list(zip(examples, indices, strict=True))
        read = map(reader.read, pairs) if reader.is_warm else pool.map(reader.read, pairs)
        images, captions = [], []
        for image, caption in read:
            images.append(image)
            captions.append(caption)
        shape = (0, image_size, image_size, 3)
        stacked = np.stack(images) if images else np.zeros(shape, np.uint8)
        return {"image": stacked, "tokens": np.asarray(tokenize(captions), np.int32)}

    steps = _FOREVER if repeat else max(0, -(-(total - start) // batch_size))
    batches = grain.MapDataset.range(steps).map(load)
    # Two batches are made at a time: one may wait for a slow picture while the other goes on.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


_FOREVER = 2**48


def _part(first: int, last: int, process_index: int, process_count: int) -> range:
    """The examples of [first, last) that one process reads: consecutive, in process order."""
    share = -(-(last - first) // process_count)
    low = min(first + process_index * share, last)
    return range(low, min(low + share, last))


class _Reader:
    """Reads one example; keeps decoded pictures where the whole data set fits in memory."""

    def __init__(self, source: Source, image_size: int, seed: int, bad: BadRecords) -> None:
        self._source = source
        self._size = image_size
        self._seed = seed
        self._bad = bad
        total = len(source)
        keep = total * image_size**2 * 3 <= CACHE_BYTES
        # np.empty takes no memory until a picture is written.
        self._pixels = np.empty((total, image_size, image_size, 3), np.uint8) if keep else None
        self._records: dict[int, Record] = {}
        self._unreadable: set[int] = set()
        self._lock = threading.Lock()

    @property
    def is_warm(self) -> bool:
        """All pictures are in memory, so that threads would only cost time."""
        known = len(self._records) + len(self._unreadable)
        return self._pixels is not None and known == len(self._source)

    def read(self, pair: tuple[int, int]) -> tuple[np.ndarray, str]:
        """Picture [S, S, 3] uint8 and caption of example `pair[0]`, which is record `pair[1]`."""
        example, index = pair
        rng = np.random.default_rng((self._seed, example))
        for attempt in range(REPLACEMENTS):
            found = None if index in self._unreadable else self._load(index)
            if found is not None:
                image, record = found
                return image, draw_caption(record.captions, rng)
            other = np.random.default_rng((self._seed, example, attempt + 1))
            index = int(other.integers(len(self._source)))
        raise UserError(
            f"example {example}: {REPLACEMENTS} records in a row could not be read; "
            "check that the data set is complete"
        )

    def _load(self, index: int) -> tuple[np.ndarray, Record] | None:
        if self._pixels is not None and index in self._records:
            return self._pixels[index], self._records[index]
        name = f"record {index}"
        try:
            record = self._source[index]
            name = record.name
            image = resize_and_crop(decode_image(record.image, name=name), self._size)
        except (BadImage, OSError, RuntimeError, ValueError) as error:
            # ArrayRecord raises RuntimeError for a damaged block, files OSError.
            reason = error.reason if isinstance(error, BadImage) else str(error)
            self._unreadable.add(index)
            self._bad.add(name, reason, len(self._source))
            return None
        if self._pixels is not None:
            # Written by two threads at worst, with the same bytes; listed only when it is whole.
            self._pixels[index] = image
            self._records[index] = replace(record, image=b"")
        return image, record
