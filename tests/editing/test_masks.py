"""Masks as people make them, and the verbs' words: which is the mask, which the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unclip_jax.cli import edit as verbs
from unclip_jax.cli import main as command_line
from unclip_jax.cli import sample
from unclip_jax.data.images import picture_bytes
from unclip_jax.editing.masks import read_mask, read_photo_with_hole
from unclip_jax.editing.pixel_settings import Inpaint
from unclip_jax.errors import UserError


def hole() -> np.ndarray:
    """[12, 20] bool, True where it is to be painted."""
    mask = np.zeros((12, 20), bool)
    mask[3:7, 5:16] = True
    return mask


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """photo.png, and masks of it in every form that people have."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    white = (255 * hole()).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(white).save(tmp_path / "gray.png")
    Image.fromarray(white).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(white).convert("RGB").save(tmp_path / "rgb.jpg", quality=95, subsampling=0)
    Image.fromarray(hole()).save(tmp_path / "bits.png")
    Image.fromarray(white).convert("P").save(tmp_path / "palette.gif")
    opaque = np.dstack([pixels, np.full((12, 20), 255, np.uint8)])
    clear = opaque.copy()
    clear[hole(), 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(clear).save(tmp_path / "clear.webp", lossless=True)
    white4 = np.dstack([white, white, white, opaque[..., 3]])
    Image.fromarray(white4).save(tmp_path / "opaque_white.png")
    soft = clear.copy()
    soft[2, 5:16, 3] = 200  # the rim of a soft eraser
    Image.fromarray(soft).save(tmp_path / "soft.png")
    Image.fromarray(white[:, :10]).save(tmp_path / "narrow.png")
    Image.fromarray(0 * white).save(tmp_path / "black.png")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("gray.png", "rgb.png", "rgb.jpg", "bits.png", "palette.gif"),
        *("clear.png", "clear.webp", "opaque_white.png", "soft.png"),
    ],
)
def test_white_or_transparent_is_painted(files: Path, name: str) -> None:
    np.testing.assert_array_equal(read_mask(picture_bytes(files / name), name=name), hole())


def test_a_photo_may_be_its_own_mask(files: Path) -> None:
    photo, mask = read_photo_with_hole(picture_bytes(files / "clear.png"), name="clear.png")
    np.testing.assert_array_equal(mask, hole())
    with Image.open(files / "photo.png") as opened:
        np.testing.assert_array_equal(photo[~mask], np.asarray(opened)[~mask])
    with pytest.raises(UserError, match=r"photo\.png has no transparent part: erase what"):
        read_photo_with_hole(picture_bytes(files / "photo.png"), name="photo.png")


@pytest.mark.parametrize(
    ("words", "mask", "prompt"),
    [
        (["gray.png", "a cat"], True, "a cat"),
        (["gray.png"], True, ""),
        (["a cat"], False, "a cat"),
        ([], False, ""),
        (["gray.png", "--prompt", "a cat"], True, "a cat"),
    ],
)
def test_the_words_of_inpaint(
    files: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], mask: bool, prompt: str
) -> None:
    """As far as what is drawn; nothing is."""
    asked: list[Any] = []

    class Stop(Exception):
        pass

    def stop(photo: str, found: str | None) -> None:
        asked.append((photo, found))
        raise Stop

    monkeypatch.setattr(verbs, "read_with_mask", stop)
    monkeypatch.setattr(verbs, "texts_of", lambda edit: asked.append(edit) or [])
    monkeypatch.chdir(files)
    with pytest.raises(Stop):
        sample.main(["inpaint", "clear.png", *words, "--out", "out"])
    assert asked == [Inpaint(prompt), ("clear.png", "gray.png" if mask else None)]


WRONG = {
    "no photo": (["inpaint"], "needs PHOTO (The picture, of any size"),
    "no hole": (["inpaint", "photo.png"], "photo.png has no transparent part"),
    "a mask that is not there": (["inpaint", "photo.png", "msk.png"], "msk.png"),
    "a mask and no file": (["inpaint", "photo.png", "nothing", "a cat"], "nothing"),
    "another size": (
        ["inpaint", "photo.png", "narrow.png"],
        "narrow.png has 10 x 12 pixels and the photo 20 x 12: give a mask of the photo's size",
    ),
    "two prompts": (["inpaint", "photo.png", "gray.png", "a", "cat"], "'cat' is one prompt too"),
    "a prompt twice": (
        ["inpaint", "photo.png", "gray.png", "a", "--prompt", "b"],
        "'a' is one prompt too many",
    ),
    "an empty window": (["inpaint", "photo.png", "gray.png", "--window", "0"], "window is 0"),
    "many resamples": (["inpaint", "photo.png", "gray.png", "--resamples", "999"], "999: give 1"),
    "a blend": (["inpaint", "photo.png", "gray.png", "--blend", "0.5"], "blend is 0.5: give 1 to"),
    "nothing to add": (["outpaint", "photo.png"], "nothing is to be added: give --left"),
    "less than nothing": (["outpaint", "photo.png", "--left", "-3"], "left is -3: give 0 to"),
    "zooming in": (["outpaint", "photo.png", "--zoom-out", "0.5"], "zoom_out is 0.5: give 1"),
    "no number": (["outpaint", "photo.png", "--zoom-out", "nan"], "zoom_out is nan"),
    "an unquoted prompt": (["outpaint", "photo.png", "a", "cat", "--left", "9"], "one prompt too"),
    "a factor": (["upscale", "photo.png", "--factor", "3"], "--factor"),
    "a folder": (["upscale", "."], "."),
    "no picture": (["upscale", "absent.png"], "absent.png"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line(
    case: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    arguments, fragment = WRONG[case]
    with pytest.raises(SystemExit) as end:
        command_line.run(sample.main, arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert fragment in captured.err


def test_an_empty_mask_is_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, mask = verbs.read_with_mask(str(files / "photo.png"), str(files / "black.png"))
    told = capsys.readouterr().err
    assert not mask.any() and told.count("\n") == 1 and "stays as it is" in told
