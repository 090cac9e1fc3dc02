"""Stages that were trained to see a known part: which are taken, what they see, what is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.test_all_stages import SAMPLING, TEXTS, stage
from tests.training import toys
from unclip_jax.cli.export import main
from unclip_jax.errors import UserError
from unclip_jax.generation.keys import image_keys
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_stage, save_stage

PICTURES = np.random.default_rng(3).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
KEEP = np.ones((3, 16, 16, 1), bool)
KEEP[0, 4:9, 2:12] = KEEP[1, :, 8:] = KEEP[2] = False
KEYS = image_keys(1, range(3))


def upsampler_inpaint() -> Stage:
    """With the four channels more."""
    plain: Any = stage("upsampler")
    unet = replace(plain.recipe.model.unet, in_channels=10)
    recipe = toys.changed(plain.recipe, model={"unet": unet, "is_inpainting": True})
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    return replace(plain, recipe=recipe, params=jax.tree.map(jnp.asarray, toys.random_like(shapes)))


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    clip = stage("clip")
    on_clip = {name: stage(name, clip.clip_id) for name in ("decoder", "decoder_inpaint")}
    upsamplers = {"upsampler_256": stage("upsampler"), "upsampler_256_inpaint": upsampler_inpaint()}
    return {"clip": clip, **on_clip, **upsamplers}


@pytest.fixture(scope="module")
def unclip(stages: dict[str, Stage]) -> UnCLIP:
    return UnCLIP(stages, SAMPLING)


def test_the_decoder_draws_around_what_it_sees(unclip: UnCLIP) -> None:
    assert unclip.inpainter == "decoder_inpaint"
    embeddings = np.asarray(unclip.encode_text(TEXTS))
    drawn = unclip.decode_known(PICTURES, KEEP, embeddings, TEXTS, KEYS)
    keep = np.broadcast_to(KEEP, PICTURES.shape)
    np.testing.assert_array_equal(drawn[keep], PICTURES[keep])
    # What is in the hole is not read, what is around it is.
    other = np.where(KEEP, PICTURES, 255 - PICTURES)
    again = unclip.decode_known(other[:2], KEEP[:2], embeddings[:2], TEXTS[:2], KEYS[:2])
    np.testing.assert_array_equal(again, drawn[:2])
    moved = unclip.decode_known(255 - PICTURES, KEEP, embeddings, TEXTS, KEYS)
    for row, is_read in enumerate((True, True, False)):
        hole = ~keep[row]
        change = np.abs(moved[row][hole].astype(int) - drawn[row][hole]).mean()
        assert (change > 1) == is_read, change


def test_the_upsampler_sees_what_is_kept(unclip: UnCLIP) -> None:
    """The right half is the hole; a tile of half the side sees its own half alone."""
    assert unclip.upsampler_stage(256, is_known=True) == "upsampler_256_inpaint"
    tiles = replace(SAMPLING, tile=8, tile_overlap=0)
    hole = np.s_[0, :, 8:]
    for sampling, is_seen in ((SAMPLING, True), (tiles, False)):
        one, other = (
            unclip.upsample(
                PICTURES[:1, :4, :4], KEYS[:1], 256, sampling, known=known, keep=KEEP[1:2]
            )
            for known in (PICTURES[:1], 255 - PICTURES[:1])
        )
        np.testing.assert_array_equal(one[0, :, :8], PICTURES[0, :, :8])
        assert (np.abs(one[hole].astype(int) - other[hole]).mean() > 1) == is_seen


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "decoder",
            "decoder_inpaint",
            r"the decoder given was trained .*it as decoder_inpaint",
        ),
        ("decoder_inpaint", "decoder", r"decoder_inpaint given was not trained .*it as decoder$"),
        ("upsampler_256_inpaint", "upsampler_256", r"was not trained .*name it as upsampler_256$"),
    ],
)
def test_a_stage_is_what_its_name_says(
    name: str, source: str, message: str, stages: dict[str, Stage]
) -> None:
    with pytest.raises(UserError, match=message):
        UnCLIP({"clip": stages["clip"], name: stages[source]}, SAMPLING)


def test_export_makes_it_a_stage_of_a_model(stages: dict[str, Stage], tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    given = stages["decoder_inpaint"]
    recipe = toys.changed(given.recipe, init_from="/home/someone/run")
    save_stage(replace(given, recipe=recipe), run, "float32")
    with pytest.raises(UserError, match=r"--decoder \S+ holds a decoder_inpaint: name it as that"):
        main(["--decoder", str(run), "--out", str(model)])
    main(["--decoder-inpaint", str(run), "--out", str(model), "--dtype", "float32"])
    written: Any = load_stage(model / "decoder_inpaint")
    assert written.recipe.model.is_inpainting and written.recipe.init_from is None
    save_stage(stages["clip"], model / "clip", "float32")
    loaded = UnCLIP.load(str(model))
    assert loaded.inpainter == "decoder_inpaint"
