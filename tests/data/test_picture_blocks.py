"""A PNG's clear colours against a decoder of its own; orientations against Pillow's reader."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.data.hostile_pictures import chunk, encoded
from unclip_jax.data.images import BadImage, decode_image
from unclip_jax.data.orientation import read_turn

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
KINDS = [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths]


def write_png(samples: np.ndarray, kind: int, depth: int, *extra: bytes) -> bytes:
    """[H, W, C] samples as a PNG whose rows are filtered by turns with None and Sub."""
    height, width, channels = samples.shape
    weights = 1 << np.arange(depth - 1, -1, -1)
    bits = (samples[..., None] & weights > 0).reshape(height, width * channels * depth)
    pixel = max(1, channels * depth // 8)
    rows = b""
    for y, row in enumerate(np.packbits(bits, axis=1)):
        before = np.concatenate([np.zeros(pixel, np.uint8), row])[: len(row)]
        rows += bytes([y % 2]) + (row - before if y % 2 else row).tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + end


def expected_rgb(
    samples: np.ndarray, kind: int, depth: int, palette: np.ndarray, clear: list[int]
) -> np.ndarray:
    """[H, W, 3] float: the samples as the PNG standard has them, on white.

    Of 16 bits the first 8 are kept, but of gray without alpha, which is scaled.
    """
    alpha = np.ones(samples.shape[:2])
    if kind in (0, 2) and clear:
        alpha = 1.0 - (samples == np.array(clear)).all(axis=-1)
    if depth == 16 and kind != 0:
        samples, depth = samples >> 8, 8
    top = 2**depth - 1
    color = samples / top * 255
    if kind == 3:
        alphas = np.array([*clear, *[255] * (len(palette) - len(clear))])
        color, alpha = palette[samples[..., 0]], alphas[samples[..., 0]] / 255
    elif kind in (4, 6):
        color, alpha = color[..., :-1], samples[..., -1] / top
    return color * alpha[..., None] + 255 * (1 - alpha[..., None]) + np.zeros(3)


@pytest.mark.parametrize(("kind", "depth"), KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_clear_colors_are_those_of_the_standard(kind: int, depth: int, seed: int) -> None:
    rng = np.random.default_rng((kind, depth, seed))
    samples = rng.integers(0, 2**depth, (5, 9, CHANNELS[kind]))
    palette = rng.integers(0, 256, (2**depth, 3))
    clear: list[int] = []
    if kind == 3:
        clear = rng.integers(0, 256, rng.integers(1, 2**depth + 1)).tolist()
        extra = [chunk(b"PLTE", palette.astype(np.uint8).tobytes()), chunk(b"tRNS", bytes(clear))]
    elif kind in (0, 2):
        clear = samples[2, 3].tolist()
        # Neighbours that differ in one bit, the lowest of 16 too, are not clear.
        samples[0, 0] = samples[2, 3] ^ 1
        samples[0, 1] = samples[2, 3]
        extra = [chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))]
    else:
        extra = []
    found = decode_image(write_png(samples, kind, depth, *extra), name="a")
    expected = expected_rgb(samples, kind, depth, palette, clear)
    assert np.abs(found - expected).max() <= 1
    if kind in (0, 2):
        assert (found[2, 3] == 255).all() and (found[0, 1] == 255).all()


def test_a_palette_that_is_partly_clear() -> None:
    """0 and 10 are a whole line to Python's `$`, which took the second for opaque."""
    palette = np.array([[1, 2, 3], [200, 0, 0]])
    extra = chunk(b"PLTE", palette.astype(np.uint8).tobytes()), chunk(b"tRNS", b"\x00\x0a")
    found = decode_image(write_png(np.array([[[0], [1]]]), 3, 8, *extra), name="a")
    assert np.abs(found[0] - [[255, 255, 255], [253, 245, 245]]).max() <= 1


def test_a_clear_color_that_is_cut_off_is_refused() -> None:
    data = write_png(np.zeros((1, 1, 3), int), 2, 8, chunk(b"tRNS", b"\0\1"))
    with pytest.raises(BadImage, match="clear colour is cut off"):
        decode_image(data, name="a")


# Orientation

TEXT = st.text("abcdef ", max_size=40)
HONEST = st.fixed_dictionaries(
    {},
    optional={0x010E: TEXT, 0x010F: TEXT, 0x0112: st.integers(0, 9), 0x0128: st.integers(1, 3)},
)
PIXELS = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)


def exif_block(tags: dict[int, Any], order: str) -> bytes:
    exif = Image.Exif()
    exif.endian = order
    for tag, value in tags.items():
        exif[tag] = value
    return exif.tobytes()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(HONEST, st.sampled_from("<>"))
def test_the_turn_of_an_honest_block_is_pillows(tags: dict[int, Any], order: str) -> None:
    block = exif_block(tags, order)
    read = Image.Exif()
    read.load(block)
    assert read_turn(block) == read.get(0x0112, 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("place", ["exif", "xmp", "both"])
@pytest.mark.parametrize("turn", [3, 6])
def test_every_file_is_turned_as_pillow_turns_it(form: str, place: str, turn: int) -> None:
    tags: dict[int, Any] = {0x010F: "maker", 0x0112: turn} if place != "xmp" else {0x010F: "maker"}
    xmp = f'<x:xmpmeta tiff:Orientation="{turn if place == "xmp" else 8}"/>'.encode()
    options: dict[str, Any] = {"exif": exif_block(tags, ">")}
    if place != "exif":
        options["xmp"] = xmp
    if form == "PNG" and place != "exif":
        from PIL.PngImagePlugin import PngInfo

        del options["xmp"]
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=place == "both")
    if form == "WEBP":
        options["lossless"] = True
    data = encoded(Image.fromarray(PIXELS), form, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, name="a"), expected)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_the_profile_that_imagemagick_writes(kind: bytes) -> None:
    block = exif_block({0x0112: 6}, "<")
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    body = text if kind == b"tEXt" else b"\0" + zlib.compress(text)
    profile = chunk(kind, b"Raw profile type exif\0" + body)
    data = write_png(PIXELS.astype(int), 2, 8, profile)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode_image(data, name="a"), expected)
    assert expected.shape == (5, 3, 3)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.binary(max_size=60), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_no_block_is_more_than_a_number(block: bytes, head: bytes) -> None:
    assert read_turn(head + block) >= 0
