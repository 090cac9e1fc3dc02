"""Pictures from strangers: decoded right, or refused in one line, in bounded memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.hostile_pictures import DECODED, HARMLESS, REFUSED, encoded
from unclip_jax.config import DataConfig
from unclip_jax.data import images, picture_pixels, picture_reader
from unclip_jax.data.images import BadImage, decode_image, picture_bytes
from unclip_jax.data.picture_reader import read_picture
from unclip_jax.data.sources import open_source

SIDE = 4000
"""Of the large pictures; the fault suite has the largest, 8000."""


@pytest.mark.parametrize("name", DECODED)
def test_decoded_right(name: str) -> None:
    make, color = DECODED[name]
    found = decode_image(make(), name="a")
    assert found.dtype == np.uint8 and found.shape[2] == 3
    assert np.abs(found.astype(int) - color).max() <= 3


@pytest.fixture(scope="module")
def measured(repository: Path) -> dict[str, tuple[str, float, float]]:
    """Words, seconds and megabytes of every refused picture and of large ones."""
    command = [sys.executable, "-m", "tests.data.hostile_pictures", str(SIDE)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, measured: dict[str, tuple[str, float, float]]) -> None:
    words, seconds, megabytes = measured[name]
    assert words.startswith("a: ") and REFUSED[name][1] in words and "\n" not in words
    assert megabytes < 30
    assert seconds < 5


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not_drawn_costs_nothing(
    name: str, measured: dict[str, tuple[str, float, float]]
) -> None:
    words, seconds, megabytes = measured[name]
    assert not words
    assert megabytes < 30
    assert seconds < 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak to read")
def test_a_large_picture_stays_in_its_bound(
    measured: dict[str, tuple[str, float, float]],
) -> None:
    """16 bytes a pixel as WebP, 12 as a progressive JPEG, 7 otherwise, and some for a strip."""
    for name, limit in {"PNG": 7, "16-bit PNG": 7, "JPEG": 12, "WebP": 16}.items():
        words, _, megabytes = measured[f"large {name}"]
        assert not words and megabytes < limit * SIDE**2 / 1e6 + 15, (name, megabytes)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation(turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Pillow turns it, also where the picture is converted in many strips."""
    monkeypatch.setattr(picture_pixels, "_STRIP_PIXELS", 30)
    rng = np.random.default_rng(turn)
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.fromarray(rng.integers(0, 255, (13, 7, 3), np.uint8)), exif=exif)
    import io

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data, name="a"), np.asarray(upright))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "I;16", "1"])
def test_strips_are_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (11, 9, 4), np.uint8)).convert(
        "RGBA" if mode == "RGBA" else "RGB"
    )
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65535, (11, 9)).astype(np.uint16))
    elif mode not in ("RGB", "RGBA"):
        image = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
    data = encoded(image)
    whole = decode_image(data, name="a")
    monkeypatch.setattr(picture_pixels, "_STRIP_PIXELS", 9)
    np.testing.assert_array_equal(decode_image(data, name="a"), whole)


def test_the_name_does_not_choose_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (4, 4), "red"), "BMP"))
    assert decode_image(picture_bytes(tmp_path / "a.png"), name="a")[0, 0].tolist() == [255, 0, 0]


def make_odd_files(folder: Path) -> dict[str, str]:
    """Things that are no pictures but are called so, and the words of their refusal."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with socket.socket(socket.AF_UNIX) as end:
        place = os.open(folder, os.O_RDONLY)  # the name of a socket has 108 bytes at most
        end.bind(f"/proc/self/fd/{place}/socket.png")
        os.close(place)
    return {
        "pipe.png": "not a regular file",
        "folder.png": "not a regular file",
        "device.png": "not a regular file",
        "socket.png": "cannot|No such device",
        "loop.png": "Too many levels",
        "sparse.png": "the limit is",
        "missing.png": "does not exist",
    }


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """None of them is waited for, and none is read."""
    for name, words in make_odd_files(tmp_path).items():
        with pytest.raises(BadImage, match=words) as caught:
            picture_bytes(tmp_path / name, name=name)
        assert str(caught.value).startswith(name) and str(tmp_path) not in str(caught.value)


def test_a_folder_with_a_pipe_trains_on_the_others(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(encoded(Image.new("RGB", (4, 4), "red")))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("one")
    source = open_source(DataConfig(source=str(tmp_path)))
    with pytest.raises(BadImage, match="not a regular file"):
        read_picture(source, 0, 4)
    assert read_picture(source, 1, 4)[0][0, 0].tolist() == [255, 0, 0]


def test_a_picture_that_is_too_large_for_the_memory_is_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resize(*_: object) -> None:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setattr(picture_reader, "resize_and_crop", resize)
    with pytest.raises(BadImage, match=r"a\.png: too large for the memory"):
        read_picture(open_source(DataConfig(source=str(tmp_path))), 0, 4)


def test_a_hostile_name_is_escaped() -> None:
    with pytest.raises(BadImage) as caught:
        decode_image(b"x", name="a\x1b[31m\u202egnp.b")
    assert str(caught.value).startswith("a\\x1b[31m\\u202egnp.b: ")
