"""TFDS data sets in ArrayRecord files, read without TensorFlow: any of them, and the emoji."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unclip_jax.config import DataConfig
from unclip_jax.data.captions import EmojiFacts
from unclip_jax.data.emoji import SIZES, build_emoji, cache_root, read_facts
from unclip_jax.data.emoji_catalogue import load_entries
from unclip_jax.data.emoji_splits import SPLITS
from unclip_jax.data.images import BadImage
from unclip_jax.data.records import Record, clean_captions
from unclip_jax.errors import UserError
from unclip_jax.printable import printable


class EmojiSource:
    """Splits of the emoji data set, drawn at the smallest size that holds `config.image_size`.

    A split is one of `SPLITS`, or several as 'train+test_cells'; the pictures of several are in the
    order of their labels, so that the styles of one thing are neighbours (`shuffle_block`). What
    `config.repeated` names follows after all pictures, as often again as `config.repeats` says.

    Args:
        limit: the first pictures only, for tests.
    Raises:
        UserError: no such split or concept.
    """

    def __init__(self, config: DataConfig, limit: int | None = None) -> None:
        splits = config.split.split("+")
        if not set(splits) <= set(SPLITS) or len(set(splits)) < len(splits):
            raise UserError(
                f"data.split is {config.split!r}: emoji has {', '.join(SPLITS)}, "
                "each once; + joins them"
            )
        _check_concepts("concepts", config.concepts)
        _check_concepts("repeated", config.repeated)
        size = next((size for size in SIZES if size >= config.image_size), SIZES[-1])
        wanted = set(config.concepts)
        self._items: list[tuple[Any, int, EmojiFacts | None]] = []
        for variants in (False, True) if config.variants else (False,):
            builder = _open_builder(build_emoji(size, variants, config.cache_dir, limit))
            for split in splits:
                if split in builder.info.splits:
                    self._items += _find_items(builder, split, wanted)
        if len(splits) > 1:
            self._items.sort(key=lambda item: item[2].label if item[2] else "")
        often = [item for item in self._items if item[2] and item[2].concept in config.repeated]
        self._split = config.split
        if not self._items:
            raise UserError(f"data.concepts: none of them has a picture in split {config.split!r}")
        if config.repeats > 1 and not often:
            raise UserError(
                f"data.repeats is {config.repeats}, and data.repeated names nothing in split "
                f"{config.split!r}: name concepts that are there"
            )
        self._items += often * (config.repeats - 1)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> Record:
        rows, row, facts = self._items[index]
        example = _read_row(rows, row, self._split)
        facts = facts or read_facts(example)
        return Record(f"{facts.style}/{facts.slug}", example["image"], facts)


def _find_items(
    builder: Any, split: str, wanted: set[str]
) -> list[tuple[Any, int, EmojiFacts | None]]:
    """Rows of a split that show a wanted concept (none: all), as (rows, row, facts)."""
    rows = _open_rows(builder, split, "image")
    items: list[tuple[Any, int, EmojiFacts | None]] = []
    for row in range(len(rows)):
        try:
            facts = read_facts(_read_row(rows, row, split))
        except BadImage:
            if not wanted:  # counted when it is read; what it shows, nobody knows
                items.append((rows, row, None))
            continue
        # The files of a split hold nothing else. Were it not so, no run may go on.
        if facts.split != split:
            raise RuntimeError(f"{facts.slug} of {facts.split} lies in {split}")
        if not wanted or facts.concept in wanted:
            items.append((rows, row, facts))
    return items


def _check_concepts(field: str, concepts: Sequence[str]) -> None:
    if not concepts:
        return
    known = {entry.concept for entry, _ in load_entries().values()}
    for name in concepts:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`data stats --names` lists them"
            raise UserError(f"data.{field}: no emoji concept is called {name!r}; {hint}")


class TfdsSource:
    """One split of a data set that TFDS wrote as ArrayRecord: 'tfds:FOLDER' or 'tfds:NAME:VERSION'.

    NAME:VERSION lies at NAME/VERSION in the cache folder. A caption feature may be a text, a
    sequence of texts, or a class label, whose name is the caption.

    Raises:
        UserError: no such data set, split or feature, or another file format.
    """

    def __init__(self, config: DataConfig) -> None:
        self._image_key, self._caption_key = config.image_key, config.caption_key
        self._split = config.split
        place = config.source.removeprefix("tfds:")
        folder = Path(place).expanduser()
        if not folder.is_dir():
            folder = cache_root(config.cache_dir).joinpath(*place.split(":"))
        if not (folder / "dataset_info.json").is_file():
            raise UserError(
                f"data.source {config.source!r}: no TFDS data set in {folder}; "
                "give the folder that holds its dataset_info.json"
            )
        builder = _open_builder(folder)
        splits = list(builder.info.splits)
        if config.split not in splits:
            raise UserError(f"data.split is {config.split!r}: {folder} has {', '.join(splits)}")
        features = builder.info.features or {}
        for field, key in (("image_key", config.image_key), ("caption_key", config.caption_key)):
            if key not in features:
                raise UserError(f"data.{field} is {key!r}: {folder} has {', '.join(features)}")
        self._label = getattr(features[config.caption_key], "int2str", None)
        self._rows = _open_rows(builder, config.split, config.image_key)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Record:
        name = f"{self._split}/{index}"
        example = _read_row(self._rows, index, self._split)
        captions = clean_captions(self._texts(example[self._caption_key]))
        if not captions:
            raise BadImage(name, "no caption")
        return Record(name, example[self._image_key], captions)

    def _texts(self, value: Any) -> list[str]:
        if self._label is not None:
            return [self._label(int(value)).replace("_", " ")]
        values = [value] if isinstance(value, (bytes, str)) else list(value)
        return [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]


def _read_row(rows: Any, row: int, split: str) -> Any:
    """One example; BadImage where it is damaged."""
    try:
        return rows[row]
    except (OSError, RuntimeError, ValueError) as error:
        # ArrayRecord keeps a hash of every chunk, and TFDS writes a chunk a record: a flipped
        # bit costs the record that it lies in. What follows the first clause is a path.
        reason = printable(str(error).partition(";")[0].partition("reading /")[0])
        raise BadImage(f"{split}/{row}", f"damaged record ({reason.strip(' ,:')})") from None


def _open_builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises many kinds for a damaged description
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder}: not a readable TFDS data set ({reason})") from None
    if builder.info.file_format is None or builder.info.file_format.value != "array_record":
        raise UserError(f"{folder}: its files are not array_record; write it again in that format")
    return builder


def _open_rows(builder: Any, split: str, image_key: str) -> Any:
    """The examples of a split with the pictures left encoded."""
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{builder.data_dir}: cannot be opened ({reason})") from None
