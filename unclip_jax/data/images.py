"""The one place that opens a picture, and what is done with pictures as uint8 arrays.

Every picture from outside (training data, a user's file) passes `decode_image`: few formats, a
limit on pixels that is checked before anything is decoded, and one result, RGB uint8.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from unclip_jax.errors import UserError
from unclip_jax.files import write_whole

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 256_000_000


class BadImage(UserError):
    """A picture that cannot be used; `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A file's bytes as RGB, turned upright by EXIF, transparency on white.

    Args:
        data: PNG, JPEG, WebP, GIF (the first frame) or BMP.
        name: what messages call the picture.
        max_pixels: width × height above which the picture is refused before it is decoded.
    Returns:
        [H, W, 3] uint8.
    Raises:
        BadImage: another format, too many pixels, or a damaged file.
    """
    if not data:
        raise BadImage(name, "the file is empty")
    if len(data) > MAX_BYTES:
        raise BadImage(name, f"the file has {len(data)} bytes, the limit is {MAX_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(name, f"{width} × {height} pixels, the limit is {max_pixels} in all")
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"not a picture in one of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, MemoryError):
        raise BadImage(name, "too large to decode") from None
    except _DAMAGE as error:
        raise BadImage(name, f"damaged ({type(error).__name__}: {error})".splitlines()[0]) from None


# What Pillow's decoders raise on damaged input; it has no exception of its own for that.
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error),
    *(IndexError, KeyError, TypeError, AttributeError, OverflowError, ZeroDivisionError),
    *(RuntimeError, NotImplementedError, AssertionError),
)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit gray: Pillow's own conversion clips at 255 instead of scaling.
        gray = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or gray.max(initial=0) > 255 else 255.0
        gray = np.clip(gray / top * 255.0, 0, 255)
        return Image.fromarray(np.round(gray).astype(np.uint8), "L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


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
