"""Which example comes next, for every loader: the order, each process's part, and replacements.

The position in the data is one integer, the number of examples consumed by all processes together.
Example g (0, 1, 2, ...) is record `order[g]` of an order that is shuffled anew each epoch; a batch
is `batch_size` consecutive examples, and process p of P reads the p-th of P equal parts of it. So
neither the number of processes nor of threads changes what a step sees, and a run resumes anywhere
exactly.

Where neighbours in the data are the hard cases of each other (one thing in four styles), blocks of
them are shuffled instead of single records: they meet in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import numpy as np

from unclip_jax.errors import UserError

T = TypeVar("T")

REPLACEMENTS = 100
"""Other records that are tried in the place of one that cannot be read."""

_FOREVER = 2**48


def stream_batches(
    total: int,
    load: Callable[[list[tuple[int, int]]], T],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    block: int = 1,
    shuffle: bool = True,
    repeat: bool = True,
) -> Iterator[T]:
    """`load` of this process's part of every batch, made ahead of time in the background.

    Args:
        total: records of the data set.
        load: the (example, record) pairs of a part → what is yielded; called from two threads.
        batch_size: examples of a batch over all processes; a multiple of `process_count`.
        start: examples that all processes together have consumed before.
        block: neighbouring records that stay together. The last block of an epoch is filled up with
            the first records, and each epoch cuts the blocks one record further on.
        repeat: go on for ever, each epoch in another order; otherwise one epoch, whose last batch
            is short (and so may be the parts of the processes).
    Raises:
        UserError: the data set is empty, or `batch_size` does not divide.
    """
    import grain

    if total == 0:
        raise UserError("the data set is empty")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} is not a multiple of the {process_count} processes"
        )
    blocks = -(-total // block)
    epoch = blocks * block
    order = grain.MapDataset.range(blocks).seed(seed)
    order = order.shuffle() if shuffle else order
    order = order.repeat() if repeat else order

    def record(example: int) -> int:
        of_block, within = divmod(example, block)
        first = cast(int, order[of_block]) * block
        return (first + within + example // epoch % block) % total

    def make(step: int) -> T:
        first = start + step * batch_size
        last = first + batch_size if repeat else min(first + batch_size, epoch)
        examples = _part(first, last, process_index, process_count)
        return load([(g, record(g)) for g in examples])

    steps = _FOREVER if repeat else max(0, -(-(epoch - start) // batch_size))
    # Two batches are made at a time: one may wait for a slow picture while the other goes on.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.range(steps).map(make).to_iter_dataset(options))


def first_readable(
    load: Callable[[int], T | None], *, example: int, index: int, seed: int, total: int
) -> T:
    """`load(index)`, or of the first other record drawn by (seed, example) that is not None.

    Raises:
        UserError: `REPLACEMENTS` records in a row are None.
    """
    for attempt in range(REPLACEMENTS):
        found = load(index)
        if found is not None:
            return found
        other = np.random.default_rng((seed, example, attempt + 1))
        index = int(other.integers(total))
    raise UserError(
        f"example {example}: {REPLACEMENTS} records in a row could not be read; "
        "check that the data set is complete"
    )


def _part(first: int, last: int, process_index: int, process_count: int) -> range:
    """The examples of [first, last) that one process reads: consecutive, in process order."""
    share = -(-(last - first) // process_count)
    low = min(first + process_index * share, last)
    return range(low, min(low + share, last))
