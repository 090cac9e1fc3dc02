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

import numpy as np
from PIL import Image, PngImagePlugin

from unclip_jax.bounded import read_bounded
from unclip_jax.data.picture_blocks import refusal
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.printable import printable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 64_000_000
_STRIP_PIXELS = 1_000_000
_ORIENTATION = 0x0112
"""The EXIF tag."""


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
        raise BadImage(name, reason or str(error)) from None


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A file's bytes as RGB, turned upright by EXIF, transparency on white.

    The largest picture allowed takes at most 1.1 GB beside its file: 16 bytes a pixel as WebP, 12
    as a progressive JPEG in CMYK, 7 otherwise (4 for Pillow's copy, 3 for the result). A picture
    that is refused for its pixels takes less than 30 MB.

    Args:
        data: PNG, JPEG, WebP, GIF (of an animation the first frame) or BMP, whatever its file is
            called. 16 bits a channel become 8. Colour profiles are not applied.
        name: what messages call the picture.
        max_pixels: width × height above which the picture is refused before it is decoded.
    Returns:
        [H, W, 3] uint8.
    Raises:
        BadImage: another format, too many pixels or bytes, or a damaged file.
    """
    if not data:
        raise BadImage(name, "the file is empty")
    _check_bytes(len(data), name)
    if reason := refusal(data):
        raise BadImage(name, reason)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(name, f"{width} × {height} pixels, the limit is {max_pixels} in all")
            image.load()
            return _upright_rgb(image)
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


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """The pixels, strip by strip: no second copy of the whole picture is ever made."""
    width, height = image.size
    turn = image.getexif().get(_ORIENTATION, 1)
    is_lying = turn in (5, 6, 7, 8)
    upright = np.empty((width, height, 3) if is_lying else (height, width, 3), np.uint8)
    # The same memory in the order of the file.
    stored = upright[::-1] if turn in (3, 4, 7, 8) else upright
    stored = stored[:, ::-1] if turn in (2, 3, 6, 7) else stored
    stored = stored.swapaxes(0, 1) if is_lying else stored
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = _to_rgb(strip)
    return upright


def _to_rgb(image: Image.Image) -> np.ndarray:
    """[h, w, 3] uint8."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion clips at 255 instead of scaling.
        gray = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        scaled = ((gray + 128) // 257).astype(np.uint8)
        if isinstance(clear, int):
            scaled[gray == clear] = 255
        return np.repeat(scaled[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or clear is not None:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, rgba)
    return np.asarray(image.convert("RGB"))


def resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central square at size × size, as ADM prepares ImageNet.

    Halved by box averages while the shorter side is at least twice `size`, then antialiased bicubic
    to `size` on the shorter side, then the centre.

    Args:
        image: [H, W, 3] uint8.
    Returns:
        [size, size, 3] uint8; the input itself where it already has that shape.
    """
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    pixels = np.asarray(picture.resize(sides, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def encode_png(image: np.ndarray, info: PngImagePlugin.PngInfo | None = None) -> bytes:
    """A PNG file's bytes of [H, W, 3] or [H, W] uint8; the same picture gives the same bytes."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def save_png(
    path: str | os.PathLike[str], image: np.ndarray, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a PNG whole or not at all; the same picture and metadata give the same bytes.

    Args:
        image: [H, W, 3] or [H, W] uint8.
        metadata: texts that go into the file (PNG iTXt), in the order given.
    Raises:
        UserError: it cannot be written, see `write_whole`.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    write_whole(path, encode_png(image, info))


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
