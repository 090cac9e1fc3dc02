"""Sets of pictures that are compared: a folder, or a split of the emoji. Read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip_jax.config import DataConfig
from unclip_jax.data.emoji_splits import SPLITS
from unclip_jax.data.folder_source import list_pictures
from unclip_jax.data.images import decode_image, picture_bytes, resize_and_crop
from unclip_jax.data.picture_manifest import GRID
from unclip_jax.data.picture_manifest import NAME as MANIFEST
from unclip_jax.data.records import PICTURES
from unclip_jax.data.sources import open_source
from unclip_jax.errors import UserError, choose
from unclip_jax.printable import printable

EMOJI = "emoji:"
LARGEST_EMOJI = 1024


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures that can be read again and again."""

    name: str
    """What the user wrote, fit for a terminal."""
    names: tuple[str, ...]
    """Of the pictures, in their order."""
    read: Callable[[int], bytes]
    """The file of picture i."""
    side: int | None
    """All are brought to it; None leaves them as they are."""

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, row: int) -> np.ndarray:
        """[H, W, 3] uint8; UserError names a picture that is damaged."""
        picture = decode_image(self.read(row), name=self.names[row])
        return picture if self.side is None else resize_and_crop(picture, self.side)

    def pictures(self) -> Iterator[np.ndarray]:
        """All of them, one in memory at a time."""
        return (self.picture(row) for row in range(len(self)))

    def digest(self) -> str:
        """Names the contents: 64 hex digits of the files in their order, whatever they are called,
        and of the side."""
        digest = hashlib.sha256(f"{self.side}".encode())
        for row in range(len(self)):
            digest.update(hashlib.sha256(self.read(row)).digest())
        return digest.hexdigest()


def open_pictures(given: str, option: str, side: int | None = None) -> PictureSet:
    """The set that an option names.

    Args:
        given: a folder, read at any depth, or emoji:SPLIT.
        option: what messages call it.
        side: of emoji, which have none of their own; pictures of a folder stay as they are.
    Raises:
        UserError: no such folder or split, or nothing in it.
    """
    if given.startswith(EMOJI):
        return _open_emoji(given, option, side or 64)
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{option} {given!r} is no folder: give one with pictures, or emoji:test_cells"
        )
    names = [name for name in list_pictures(folder) if not _is_grid(folder / name)]
    if not names:
        raise UserError(f"{option} {given!r}: no pictures ({', '.join(PICTURES)}) in there")

    def read(row: int) -> bytes:
        return picture_bytes(folder / names[row], name=names[row])

    return PictureSet(printable(given), tuple(names), read, None)


def _is_grid(path: Path) -> bool:
    """All pictures of a folder of samples side by side: none of them."""
    return path.name == GRID and path.with_name(MANIFEST).is_file()


def _open_emoji(given: str, option: str, side: int) -> PictureSet:
    split = given.removeprefix(EMOJI)
    if split not in SPLITS:
        raise UserError(f"{option} {given!r}: no such split; {choose(split, SPLITS)}")
    side = min(side, LARGEST_EMOJI)
    source = open_source(DataConfig(split=split, image_size=side))
    names = tuple(f"{given}[{row}]" for row in range(len(source)))
    return PictureSet(given, names, lambda row: source[row].image, side)
