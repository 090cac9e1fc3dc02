"""Batches of stored embeddings and tokens, and of pictures where they are wanted.

The same examples in the same order with the same drawn captions as `pipeline.make_batches` gives
for the source that was embedded: a run may go over from one to the other at any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import all_captions, draw_caption
from unclip_jax.data.embedding_store import EmbeddingStore
from unclip_jax.data.example_order import first_readable, stream_batches
from unclip_jax.data.images import BadImage
from unclip_jax.data.picture_reader import PictureReader
from unclip_jax.data.pipeline import Batch, Tokenize
from unclip_jax.data.records import Record, Source
from unclip_jax.errors import UserError


def make_embedding_batches(
    store: EmbeddingStore,
    *,
    batch_size: int,
    tokenize: Tokenize,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    source: Source | None = None,
    image_size: int = 64,
    threads: int = 4,
    bad: BadRecords | None = None,
    block: int = 1,
    shuffle: bool = True,
    repeat: bool = True,
) -> Iterator[Batch]:
    """This process's part of every batch; arguments as `make_batches`, and two more.

    Args:
        store: checked against the run by `check_fits`.
        source: the pictures that were embedded; None yields no pictures and opens none.
        image_size: side of the pictures; without `source` it says nothing.
    Yields:
        embedding: [b, E] float32, unit norm, b = batch_size / process_count.
        tokens: [b, L] int32.
        image: [b, image_size, image_size, 3] uint8, with `source` only.
    Raises:
        UserError: too many pictures cannot be read, `batch_size` does not divide, a shard is
            damaged, or a record of `source` is not the one that was embedded.
    """
    bad = bad or BadRecords()
    pictures = None if source is None else PictureReader(source, image_size, bad)
    reader = _Reader(store, pictures, tokenize, seed, bad)
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")

    def load(pairs: list[tuple[int, int]]) -> Batch:
        is_quick = pictures is None or pictures.is_warm
        rows = list((map if is_quick else pool.map)(reader.read, pairs))
        batch = {
            "embedding": store.embeddings([row for row, _, _ in rows]),
            "tokens": np.array([tokens for _, tokens, _ in rows], np.int32).reshape(
                -1, store.made_of.context_length
            ),
        }
        if pictures is not None:
            images = [image for _, _, image in rows if image is not None]
            shape = (0, image_size, image_size, 3)
            batch["image"] = np.stack(images) if images else np.zeros(shape, np.uint8)
        return batch

    return stream_batches(
        len(store),
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


class _Reader:
    """Reads one example: its row after replacement, its tokens, its picture."""

    def __init__(
        self,
        store: EmbeddingStore,
        pictures: PictureReader | None,
        tokenize: Tokenize,
        seed: int,
        bad: BadRecords,
    ) -> None:
        self._store, self._pictures, self._tokenize = store, pictures, tokenize
        self._seed, self._bad = seed, bad

    def read(self, pair: tuple[int, int]) -> tuple[int, np.ndarray, np.ndarray | None]:
        """Row of the store, tokens [L] int32 and picture of example `pair[0]`, record `pair[1]`."""
        example, index = pair
        row, record, image = first_readable(
            self._load, example=example, index=index, seed=self._seed, total=len(self._store)
        )
        rng = np.random.default_rng((self._seed, example))
        return row, self._tokens(row, record, draw_caption(record.captions, rng)), image

    def _load(self, index: int) -> tuple[int, Record, np.ndarray | None] | None:
        found = None
        if self._pictures is not None:
            found = self._pictures.load(index)
            if found is None:
                return None
        try:
            record = self._store[index]
        except BadImage as error:
            self._bad.add(error.name, error.reason, len(self._store))
            return None
        if found is None:
            return index, record, None
        image, original = found
        if (original.name, original.captions) != (record.name, record.captions):
            raise UserError(
                f"record {index} of the data is {original.name}, {self._store.folder} has the "
                f"embedding of {record.name} there, or its captions differ: the data has changed, "
                "embed it again into a new folder"
            )
        return index, record, image

    def _tokens(self, row: int, record: Record, caption: str) -> np.ndarray:
        texts = all_captions(record.captions)
        if caption in texts:
            return self._store.tokens(row, texts.index(caption))
        return self._tokenize([caption])[0]  # an emoji's with drawn tags
