"""A decoded picture as RGB, upright and on white, strip by strip; its alpha if it is wanted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_STRIP_PIXELS = 1_000_000
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


@dataclass(frozen=True)
class ClearColor:
    """The one colour of a gray or RGB picture that is clear, as Pillow shows its samples."""

    samples: tuple[int, ...]
    """One for gray, three for RGB; of 16-bit RGB the high bytes, which are all Pillow keeps."""
    low_samples: tuple[int, ...] = ()
    """Of 16-bit RGB the low bytes."""
    low: Image.Image | None = None
    """The picture that is made of the low bytes."""


def read_clear_color(mode: str, depth: int, block: bytes) -> ClearColor:
    """The colour in a PNG's tRNS (PNG, third edition, 11.3.1.1).

    Args:
        mode: Pillow's, one of '1', 'L', 'I;16' and 'RGB'.
        depth: bits of a sample in the file: 1, 2, 4, 8 or 16.
        block: 16 bits a sample, of which the lowest `depth` count.
    Raises:
        ValueError: too short.
    """
    count = 3 if mode == "RGB" else 1
    if len(block) < 2 * count:
        raise ValueError("its clear colour is cut off")
    top = (1 << depth) - 1
    samples = [int.from_bytes(block[2 * i : 2 * i + 2]) & top for i in range(count)]
    if mode == "RGB" and depth == 16:
        return ClearColor(
            tuple(sample >> 8 for sample in samples), tuple(sample & 255 for sample in samples)
        )
    # Pillow widens gray of 1, 2 and 4 bits to 8.
    return ClearColor(tuple(s * 255 // top if depth < 8 else s for s in samples))


def upright(
    image: Image.Image, turn: int, clear: ClearColor | None, channels: int = 3
) -> np.ndarray:
    """The pixels, strip by strip: no second copy of the whole picture is ever made.

    Args:
        turn: as EXIF counts, see `read_turn`.
        clear: of a PNG in gray or RGB; other transparency is known to Pillow.
        channels: 3, or 4 for the alpha too.
    Returns:
        [H, W, channels] uint8: RGB on white, and how far it covers that.
    """
    width, height = image.size
    is_lying = turn in (5, 6, 7, 8)
    sides = (width, height) if is_lying else (height, width)
    found = np.empty((*sides, channels), np.uint8)
    # The same memory in the order of the file.
    stored = found[::-1] if turn in (3, 4, 7, 8) else found
    stored = stored[:, ::-1] if turn in (2, 3, 6, 7) else stored
    stored = stored.swapaxes(0, 1) if is_lying else stored
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        strip, part = image if rows >= height else image.crop(box), stored[top : top + rows]
        part[..., :3] = _to_rgb(strip)
        if channels == 4:
            part[..., 3] = _alpha(strip)
        if clear is not None:
            low = None if clear.low is None else clear.low.crop(box)
            part[_is_clear(strip, clear, low)] = (255, 255, 255, 0)[:channels]
    return found


def _to_rgb(image: Image.Image) -> np.ndarray:
    """[h, w, 3] uint8."""
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion clips at 255 instead of scaling.
        gray = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        return np.repeat(((gray + 128) // 257).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in _WITH_ALPHA or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _alpha(image: Image.Image) -> np.ndarray | int:
    """[h, w] uint8; 255 of a picture that has no transparency."""
    if image.mode in _WITH_ALPHA or image.info.get("transparency") is not None:
        return np.asarray(image.convert("RGBA").getchannel("A"))
    return 255


def _is_clear(image: Image.Image, clear: ClearColor, low: Image.Image | None) -> np.ndarray:
    """[h, w] bool."""
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    equal = np.atleast_3d(samples) == np.array(clear.samples)
    if low is not None:
        equal &= np.asarray(low) == np.array(clear.low_samples)
    return equal.all(axis=-1)
