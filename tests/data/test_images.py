"""decode_image on every kind of file, good and hostile; resizing, saving, grids."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data.images import (
    BadImage,
    decode_image,
    decode_with_alpha,
    encode_animation,
    make_grid,
    resize_and_crop,
    save_png,
)
from unclip_jax.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(size: tuple[int, int] = (20, 12)) -> Image.Image:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    pixels[..., 2] = 80
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 12),
    ],
)
def test_every_format(kind: str, options: dict[str, object], tolerance: int) -> None:
    image = decode_image(encoded(picture(), kind, **options), name="a")
    assert image.shape == (12, 20, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - np.asarray(picture())).max() <= tolerance


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data, name="a") == (255, 0, 0)).all()


def test_alpha_can_be_kept() -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (7, 11, 4), dtype=np.uint8))
    alpha = np.asarray(image)[..., 3]
    grays = Image.fromarray(random.integers(0, 256, (7, 11), dtype=np.uint8))
    palette = grays.convert("P")
    fifth = np.where(np.asarray(palette) == 5, 0, 255)
    deep = Image.fromarray(random.integers(0, 65536, (7, 11), dtype=np.uint16))
    clear = int(np.asarray(deep)[2, 3])
    turned = Image.Exif()
    turned[0x0112] = 6
    cases = {
        "rgba": (encoded(image), alpha),
        "webp": (encoded(image, "WEBP", lossless=True), alpha),
        "la": (encoded(Image.merge("LA", (grays, image.getchannel("A")))), alpha),
        "palette": (encoded(palette, transparency=5), fifth),
        "gif": (encoded(palette, "GIF", transparency=5), fifth),
        "16 bits": (
            encoded(deep, transparency=clear),
            np.where(np.asarray(deep) == clear, 0, 255),
        ),
        "opaque": (encoded(picture()), np.full((12, 20), 255)),
        "upright": (encoded(image, exif=turned), np.rot90(alpha, -1)),
    }
    for name, (data, expected) in cases.items():
        pixels, found = decode_with_alpha(data, name=name)
        assert found.dtype == np.uint8, name
        np.testing.assert_array_equal(found, expected, name)
        np.testing.assert_array_equal(pixels, decode_image(data, name=name), name)
    with pytest.raises(BadImage, match="limit is 5 in all"):
        decode_with_alpha(encoded(image), name="a", max_pixels=5)
    with pytest.raises(BadImage, match="empty"):
        decode_with_alpha(b"", name="a")


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    decoded = decode_image(encoded(image), name="a")
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert abs(int(decoded[0, 1, 0]) - 127) <= 1
    assert decoded[3, 3].tolist() == [255, 255, 255]


def test_transparent_palette_entry_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 1), 1)
    decoded = decode_image(encoded(image, transparency=0), name="a")
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [200, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_other_modes_become_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 32896, np.uint16))
    else:
        image = Image.new("L", (4, 4), 128).convert(mode)
    decoded = decode_image(encoded(image), name="a")
    assert decoded.shape == (4, 4, 3) and decoded.dtype == np.uint8
    if mode != "1":
        assert np.abs(decoded.astype(int) - 128).max() <= 3


def test_cmyk_jpeg() -> None:
    decoded = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), name="a")
    red = decoded[4, 4].astype(int)
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


def test_exif_orientation_turns_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    data = encoded(picture(), "JPEG", exif=exif, quality=95)
    assert decode_image(data, name="a").shape == (20, 12, 3)


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((640, 480), 40, (60, 80)),  # an eighth is the least there is
        ((640, 480), 61, (120, 160)),
        ((640, 480), 100, (120, 160)),
        ((640, 480), 240, (240, 320)),
        ((640, 480), 241, (480, 640)),
        ((100, 60), 64, (60, 100)),  # smaller than asked for
    ],
)
def test_a_large_jpeg_is_decoded_smaller(
    size: tuple[int, int], least: int, expected: tuple[int, int]
) -> None:
    data = encoded(picture(size), "JPEG", quality=95)
    small = decode_image(data, name="a", least_side=least)
    whole = Image.fromarray(decode_image(data, name="a"))
    assert small.shape[:2] == expected
    averaged = np.asarray(whole.resize(expected[::-1], Image.Resampling.BOX))
    assert np.abs(small.astype(int) - averaged).max() <= 4
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(picture(size), "JPEG", exif=exif)
    assert decode_image(lying, name="a", least_side=least).shape[:2] == expected[::-1]


def test_other_formats_are_decoded_whole() -> None:
    data = encoded(picture((640, 480)))
    np.testing.assert_array_equal(
        decode_image(data, name="a", least_side=64), np.asarray(picture((640, 480)))
    )


def bomb() -> bytes:
    """A PNG that says it has 10^10 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        body = kind + body
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(BadImage, match=r"big\.png: "):
        decode_image(bomb(), name="big.png")
    data = encoded(picture())
    with pytest.raises(BadImage, match="20 × 12 pixels, the limit is 239"):
        decode_image(data, name="a", max_pixels=239)
    assert decode_image(data, name="a", max_pixels=240).shape == (12, 20, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        encoded(picture(), "TIFF"),
        encoded(picture(), "PPM"),
        encoded(picture(), "ICO"),
    ],
)
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage) as caught:
        decode_image(data, name="some/picture.png")
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith("some/picture.png: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_only_bad_image(kind: str) -> None:
    """Cut anywhere or with bytes changed: a picture or BadImage, never another exception."""
    whole = encoded(picture((40, 30)), kind)
    rng = np.random.default_rng(0)
    damaged = [whole[:cut] for cut in np.linspace(0, len(whole) - 1, 40).astype(int)]
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        damaged.append(bytes(data))
    messages: list[str] = []
    for data in damaged:
        try:
            assert decode_image(data, name="a", max_pixels=1_000_000).ndim == 3
        except BadImage as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert not any("\n" in message for message in messages)


def test_resize_takes_the_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (resize_and_crop(wide, 10) == 200).all()
    assert (resize_and_crop(wide.transpose(1, 0, 2), 10) == 200).all()


@pytest.mark.parametrize(
    "shape", [(64, 64), (63, 200), (1, 7), (129, 128), (500, 333), (1, 3_000_000), (2_000_000, 2)]
)
@pytest.mark.parametrize("size", [1, 16, 64])
def test_resize_has_the_size_asked_for(shape: tuple[int, int], size: int) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    resized = resize_and_crop(image, size)
    assert resized.shape == (size, size, 3) and resized.dtype == np.uint8
    assert (resized == 77).all()


def test_resize_antialiases() -> None:
    board = np.indices((256, 256)).sum(0) % 2 * 255
    resized = resize_and_crop(np.repeat(board[..., None], 3, -1).astype(np.uint8), 32)
    assert np.abs(resized.astype(int) - 127).max() <= 2


def test_a_picture_of_the_right_size_is_untouched() -> None:
    image = np.asarray(picture((16, 16)))
    assert np.array_equal(resize_and_crop(image, 16), image)


def test_save_png_is_deterministic_and_keeps_metadata(tmp_path: Path) -> None:
    image = np.asarray(picture())
    metadata = {"prompt": "a réd apple ’", "seed": "3"}
    save_png(tmp_path / "a.png", image, metadata)
    save_png(tmp_path / "b.png", image, metadata)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.info == metadata
    assert np.array_equal(decode_image((tmp_path / "a.png").read_bytes(), name="a"), image)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_save_png_without_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save_png(tmp_path / "none" / "a.png", np.zeros((2, 2, 3), np.uint8))


def test_grid_places_every_picture() -> None:
    images = np.stack([np.full((4, 6, 3), value, np.uint8) for value in range(5)])
    grid = make_grid(images, columns=3, pad=2)
    assert grid.shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    assert (grid[2:6, 2:8] == 0).all() and (grid[2:6, 18:24] == 2).all()
    assert (grid[8:12, 10:16] == 4).all() and (grid[8:12, 18:24] == 255).all()
    assert (grid[:2] == 255).all() and (grid[:, -2:] == 255).all()


def test_limit_on_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip_jax.data.images.MAX_BYTES", 10)
    data = encoded(picture())
    with pytest.raises(BadImage, match="the limit is 10"):
        decode_image(data, name="a")


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_an_animation_has_every_picture(kind: str) -> None:
    frames = np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 8 * 9 * 3).reshape(5, 8, 9, 3)
    with Image.open(io.BytesIO(encode_animation(frames, kind, 80))) as picture:
        assert (picture.format or "").lower() == kind and picture.n_frames == 5  # type: ignore[attr-defined]
        for number, frame in enumerate(frames):
            picture.seek(number)
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frame)
            assert picture.info["duration"] == 80
