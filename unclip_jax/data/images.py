"""The one place that opens a picture, and what is done with pictures as uint8 arrays.

Every picture from outside (training data, a user's file) passes `decode_image`: few formats, limits
on bytes and pixels that are checked before anything is decoded, and one result, RGB uint8.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from unclip_jax.bounded import read_bounded
from unclip_jax.data.orientation import read_turn
from unclip_jax.data.picture_blocks import Blocks, read_blocks
from unclip_jax.data.picture_pixels import ClearColor, read_clear_color, upright
from unclip_jax.errors import UserError
from unclip_jax.files import missing, write_whole
from unclip_jax.printable import printable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 64_000_000
MAX_ASPECT = 16


class BadImage(UserError):
    """A picture that cannot be used; `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)}: {reason}")
        self.name = name
        self.reason = reason


def picture_bytes(path: str | os.PathLike[str], *, name: str | None = None) -> bytes:
    """A picture's file, at most `MAX_BYTES` of it in memory.

    Args:
        name: what messages call the picture; None is the path.
    Raises:
        BadImage: it cannot be read, is too large, or is a folder, a pipe or a device.
    """
    name = str(path) if name is None else name
    try:
        return read_bounded(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        if isinstance(error, FileNotFoundError):
            reason = missing(path)
        raise BadImage(name, reason or str(error)) from None


def decode_image(
    data: bytes, *, name: str, max_pixels: int = MAX_PIXELS, least_side: int | None = None
) -> np.ndarray:
    """A file's bytes as RGB, turned upright by EXIF, transparency on white.

    The largest picture allowed takes at most 1.1 GB beside its file and a copy of that: 16 bytes a
    pixel as WebP, 12 as a progressive JPEG in CMYK, 11 in 16-bit RGB with a clear colour, 7
    otherwise (4 for Pillow's copy, 3 for the result). A picture that is refused for its pixels
    takes less than 30 MB, and what a file says beside its pixels takes a copy of it at most.

    Args:
        data: PNG, JPEG, WebP, GIF (of an animation the first frame) or BMP, whatever its file is
            called. 16 bits a channel become 8. Colour profiles are not applied.
        name: what messages call the picture.
        max_pixels: width × height above which the picture is refused before it is decoded.
        least_side: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side is still so
            long then, which takes a fraction of the time; None decodes all of it.
    Returns:
        [H, W, 3] uint8.
    Raises:
        BadImage: another format, too many pixels or bytes, or a damaged file.
    """
    return _decode(data, name, max_pixels, 3, least_side)


def decode_with_alpha(
    data: bytes, *, name: str, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray]:
    """`decode_image`, and how opaque each pixel is; four bytes a pixel more, and the same limits.

    Returns:
        [H, W, 3] uint8, transparency on white, and [H, W] uint8: 0 transparent, 255 opaque.
    """
    pixels = _decode(data, name, max_pixels, 4)
    return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])


def _decode(
    data: bytes, name: str, max_pixels: int, channels: int, least_side: int | None = None
) -> np.ndarray:
    if not data:
        raise BadImage(name, "the file is empty")
    _check_bytes(len(data), name)
    try:
        blocks = read_blocks(data)
    except ValueError as error:
        raise BadImage(name, str(error)) from None
    try:
        with Image.open(io.BytesIO(blocks.data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(name, f"{width} × {height} pixels, the limit is {max_pixels} in all")
            clear = _clear_color(image, blocks)
            if least_side is not None and image.format == "JPEG":
                parts = max(1, min(width, height) // least_side)
                image.draft(None, (width // parts, height // parts))
            image.load()
            # Of a WebP, which is given to Pillow whole, Pillow has both blocks.
            exif, xmp = (image.info.get(key, b"") for key in ("exif", "xmp"))
            turn = read_turn(blocks.exif or exif, blocks.xmp or xmp)
            return upright(image, turn, clear, channels)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"not a picture in one of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, MemoryError):
        raise BadImage(name, "too large to decode") from None
    except _DAMAGE as error:
        words = printable(f"{type(error).__name__}: {error}".splitlines()[0])
        raise BadImage(name, f"damaged ({words})") from None


# What Pillow's decoders raise on damaged input; it has no exception of its own for that.
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error),
    *(IndexError, KeyError, TypeError, AttributeError, OverflowError, ZeroDivisionError),
    *(RuntimeError, NotImplementedError, AssertionError),
)


def _check_bytes(count: int, name: str) -> None:
    if count > MAX_BYTES:
        raise BadImage(name, f"the file has {count} bytes, the limit is {MAX_BYTES}")


def _clear_color(image: ImageFile.ImageFile, blocks: Blocks) -> ClearColor | None:
    """Of a PNG in gray or RGB; the clear entries of a palette are handed to Pillow."""
    if not blocks.clear or image.mode not in ("1", "L", "I;16", "RGB", "P"):
        return None
    if image.mode == "P":
        # All of them: Pillow's own short form takes a palette that is partly clear for opaque.
        image.info["transparency"] = blocks.clear
        return None
    clear = read_clear_color(image.mode, blocks.depth, blocks.clear)
    if not clear.low_samples:
        return clear
    # Pillow keeps the first byte of 16 bits. Told that they are little-endian it keeps the second.
    low = Image.open(io.BytesIO(blocks.data), formats=("PNG",))
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    low.load()
    return replace(clear, low=low)


def resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central square at size × size, as ADM prepares ImageNet.

    Of a strip longer than `MAX_ASPECT` times its width only the middle is looked at. Halved by box
    averages while the shorter side is at least twice `size`, then antialiased bicubic to `size` on
    the shorter side, then the centre.

    Args:
        image: [H, W, 3] uint8.
    Returns:
        [size, size, 3] uint8; the input itself where it already has that shape.
    """
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(_middle(image))
    while min(picture.size) >= 2 * size:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    pixels = np.asarray(picture.resize(sides, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _middle(image: np.ndarray) -> np.ndarray:
    """Without the far ends of a strip: enlarged whole, one of 1 x 40,000,000 has no bound."""
    longest = MAX_ASPECT * min(image.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in image.shape[:2])
    return image[top : top + longest, left : left + longest]


def encode_png(image: np.ndarray, metadata: Mapping[str, str] | None = None) -> bytes:
    """A PNG file's bytes; the same picture and metadata give the same bytes.

    Args:
        image: [H, W, 3] or [H, W] uint8.
        metadata: texts that go into the file (PNG iTXt), in the order given.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def save_png(
    path: str | os.PathLike[str], image: np.ndarray, metadata: Mapping[str, str] | None = None
) -> None:
    """`encode_png` into a file, whole or not at all.

    Raises:
        UserError: it cannot be written, see `write_whole`.
    """
    write_whole(path, encode_png(image, metadata))


def encode_animation(images: np.ndarray, kind: str, milliseconds: int = 120) -> bytes:
    """Pictures one after another, over and over: the bytes of a file.

    Args:
        images: [N, H, W, 3] uint8.
        kind: webp, without loss, or gif, with 256 colours.
    """
    first, *rest = (Image.fromarray(one) for one in images)
    out = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    first.save(
        out, kind, save_all=True, append_images=rest, duration=milliseconds, loop=0, **options
    )
    return out.getvalue()


def make_grid(images: np.ndarray, columns: int, pad: int = 2) -> np.ndarray:
    """Pictures in rows of `columns` on white, `pad` pixels between them and around.

    Args:
        images: [N, H, W, 3] uint8, N at least 1.
    Returns:
        [rows·(H+pad)+pad, columns·(W+pad)+pad, 3] uint8.
    """
    count, height, width, channels = images.shape
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + pad) + pad, columns * (width + pad) + pad, channels)
    grid = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        top = pad + index // columns * (height + pad)
        left = pad + index % columns * (width + pad)
        grid[top : top + height, left : left + width] = image
    return grid
