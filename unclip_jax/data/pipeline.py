"""Records to batches of pictures and tokens, in the order of `example_order.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import draw_caption
from unclip_jax.data.example_order import first_readable, stream_batches
from unclip_jax.data.picture_reader import PictureReader
from unclip_jax.data.records import Source

Batch = dict[str, np.ndarray]
Tokenize = Callable[[Sequence[str]], np.ndarray]


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
    block: int = 1,
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
        block: neighbouring records that stay together (`stream_batches`).
        repeat: go on for ever, each epoch in another order; otherwise one epoch, whose last batch
            is short (and so may be the parts of the processes).
    Yields:
        image: [b, image_size, image_size, 3] uint8, b = batch_size / process_count.
        tokens: [b, L] int32.
    Raises:
        UserError: too many pictures cannot be read, the data set is empty, or `batch_size` does not
            divide.
    """
    total = len(source)
    pictures = PictureReader(source, image_size, bad or BadRecords())
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")

    def read(pair: tuple[int, int]) -> tuple[np.ndarray, str]:
        example, index = pair
        image, record = first_readable(
            pictures.load, example=example, index=index, seed=seed, total=total
        )
        return image, draw_caption(record.captions, np.random.default_rng((seed, example)))

    def load(pairs: list[tuple[int, int]]) -> Batch:
        images, captions = [], []
        for image, caption in (map if pictures.is_warm else pool.map)(read, pairs):
            images.append(image)
            captions.append(caption)
        shape = (0, image_size, image_size, 3)
        stacked = np.stack(images) if images else np.zeros(shape, np.uint8)
        return {"image": stacked, "tokens": np.asarray(tokenize(captions), np.int32)}

    return stream_batches(
        total,
        load,
        batch_size=batch_size,
        seed=seed,
        start=start,
        process_index=process_index,
        process_count=process_count,
        block=block,
        shuffle=shuffle,
        repeat=repeat,
    )
