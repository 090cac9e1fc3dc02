"""Edits that keep pixels, on tiny random stages: they are kept, and nothing hidden is looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.generation.test_all_stages import SAMPLING, TWO_STEPS, stage
from tests.training import toys
from unclip_jax.config import from_dict
from unclip_jax.diffusion.inpainting import Resampling
from unclip_jax.editing import upscaling
from unclip_jax.editing.drawing import draw_edit
from unclip_jax.editing.facts import picture_id
from unclip_jax.editing.job import Job
from unclip_jax.editing.pixel_settings import Inpaint, Outpaint, Upscale
from unclip_jax.editing.repainting import canvas_of, upsamplers_for
from unclip_jax.errors import UserError
from unclip_jax.generation.keys import image_keys
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.pipeline import UnCLIP

TWICE = Resampling(1, 2)
RANDOM = np.random.default_rng(5)
PHOTO = RANDOM.integers(0, 256, (50, 37, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def unclip() -> UnCLIP:
    """Decodes 16 x 16, upsamples to 64 and to 256."""
    clip = stage("clip")
    on_clip = {name: stage(name, clip.clip_id) for name in ("prior", "decoder")}
    # A random network that predicts eps says black or white of everything.
    recipe: Any = on_clip["decoder"].recipe
    diffusion = replace(recipe.diffusion, prediction="v")
    on_clip["decoder"] = replace(on_clip["decoder"], recipe=replace(recipe, diffusion=diffusion))
    large = stage("upsampler")
    how = replace(SAMPLING, upsampler_1024=replace(TWO_STEPS, num_steps=1))
    stages = {"clip": clip, **on_clip, "upsampler_256": large, "upsampler_1024": large}
    return UnCLIP(stages, how, "toy")


@pytest.fixture(scope="module")
def small(unclip: UnCLIP) -> UnCLIP:
    """Decodes 16 x 16 and no more."""
    stages = {name: unclip.stages[name] for name in ("clip", "prior", "decoder")}
    return UnCLIP(stages, unclip.sampling, "toy", unclip._compiled)


def masked(shape: tuple[int, ...], *box: int) -> np.ndarray:
    """[H, W] bool, True inside (top, left, height, width)."""
    mask = np.zeros(shape[:2], bool)
    top, left, height, width = box
    mask[top : top + height, left : left + width] = True
    return mask


# -- the stages around what is known


def test_the_decoder_keeps_what_is_known(unclip: UnCLIP) -> None:
    images = RANDOM.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    keep = RANDOM.random((3, 16, 16, 1)) < 0.5
    keys, vectors = image_keys(2, range(3)), unclip.encode_text(["a", "b", "c"])
    drawn = unclip.decode_known(images, keep, vectors, ["a", "b", "c"], keys, resampling=TWICE)
    kept = np.broadcast_to(keep, images.shape)
    np.testing.assert_array_equal(drawn[kept], images[kept])
    assert np.abs(drawn[~kept].astype(int) - images[~kept]).mean() > 10
    hidden = np.where(kept, images, 255 - images)
    alone = unclip.decode_known(
        hidden[1:2], keep[1:2], vectors[1:2], ["b"], keys[1:2], resampling=TWICE
    )
    np.testing.assert_array_equal(alone[0], drawn[1])
    seen = np.where(kept, 255 - images, images)
    other = unclip.decode_known(seen, keep, vectors, ["a", "b", "c"], keys, resampling=TWICE)
    assert (other[~kept] != drawn[~kept]).mean() > 0.05  # it is looked at


def test_an_upsampler_keeps_what_is_known_of_the_large_picture(unclip: UnCLIP) -> None:
    low = RANDOM.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    known = RANDOM.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    keep = RANDOM.random((1, 64, 64, 1)) < 0.5
    keys = image_keys(2, [0])
    drawn = unclip.upsample(low, keys, 256, known=known, keep=keep)
    kept = np.broadcast_to(keep, known.shape)
    np.testing.assert_array_equal(drawn[kept], known[kept])
    hidden = np.where(kept, known, 255 - known)
    again = unclip.upsample(low, keys, 256, known=hidden, keep=keep)
    np.testing.assert_array_equal(again, drawn)
    nothing = unclip.upsample(low, keys, 256, known=known, keep=np.zeros_like(keep))
    plain = unclip.upsample(low, keys, 256)
    assert np.abs(nothing.astype(int) - plain).max() <= 1  # another program rounds anew
    assert (nothing[~kept] != drawn[~kept]).mean() > 0.05


# -- inpaint


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((50, 37), (20, 11, 1, 1)),  # one pixel
        ((50, 37), (3, 5, 9, 22)),
        ((16, 16), (0, 0, 16, 8)),
        ((7, 45), (0, 20, 7, 20)),  # thinner than the decoder's side
        ((50, 37), (0, 0, 50, 37)),  # all of it
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_what_is_not_masked_stays_byte_by_byte(
    unclip: UnCLIP, shape: tuple[int, int], box: tuple[int, ...]
) -> None:
    photo, mask = PHOTO[: shape[0], : shape[1]], masked(shape, *box)
    if photo.shape[:2] != shape:
        photo = RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)
    samples = unclip.inpaint(photo, mask, "a red apple", 1, resampling=TWICE)
    assert samples.images.shape == (1, *photo.shape) and samples.images.dtype == np.uint8
    np.testing.assert_array_equal(samples.images[0][~mask], photo[~mask])
    hidden = photo.copy()
    hidden[mask] = 255 - hidden[mask]
    again = unclip.inpaint(hidden, mask, "a red apple", 1, resampling=TWICE)
    np.testing.assert_array_equal(again.images, samples.images)
    assert mask.all() or (samples.images[0][mask] != photo[mask]).any()


def test_at_the_second_upsamplers_resolution(unclip: UnCLIP) -> None:
    photo = RANDOM.integers(0, 256, (150, 130, 3), dtype=np.uint8)
    mask = masked(photo.shape, 30, 40, 60, 50)
    samples = unclip.inpaint(photo, mask, "a red apple", 1, resampling=TWICE)
    assert samples.metadata[0]["upsample"] == 1024
    np.testing.assert_array_equal(samples.images[0][~mask], photo[~mask])
    less = unclip.inpaint(photo, mask, "a red apple", 1, resampling=TWICE, upsample=256)
    assert (
        less.metadata[0]["upsample"] == 256 and "upsampler_1024" not in less.metadata[0]["weights"]
    )
    np.testing.assert_array_equal(less.images[0][~mask], photo[~mask])


def test_an_empty_mask_needs_no_network(unclip: UnCLIP) -> None:
    alone = UnCLIP({"clip": unclip.clip, "decoder": unclip.stages["decoder"]})
    samples = alone.inpaint(PHOTO, np.zeros(PHOTO.shape[:2], bool))
    np.testing.assert_array_equal(samples.images, PHOTO[None])
    assert alone.compile_seconds == 0


def test_candidates_do_not_depend_on_each_other_and_come_best_first(small: UnCLIP) -> None:
    mask = masked(PHOTO.shape, 10, 10, 12, 12)
    four = small.inpaint(PHOTO, mask, "a red apple", seed=3, resampling=TWICE)
    assert four.scores is not None and list(four.scores) == sorted(four.scores, reverse=True)
    assert {facts["index"] for facts in four.metadata} == {0, 1, 2, 3}
    by_index = {f["index"]: image for f, image in zip(four.metadata, four.images, strict=True)}
    alone = small.inpaint(PHOTO, mask, "a red apple", 1, seed=3, resampling=TWICE)
    np.testing.assert_array_equal(alone.images[0], by_index[0])
    assert (by_index[0] != by_index[1]).any()
    other = small.inpaint(PHOTO, mask, "a blue car", 1, seed=3, resampling=TWICE)
    assert (other.images[0] != by_index[0]).any()
    guided = replace(small.sampling, decoder=replace(TWO_STEPS, method="ddpm", guidance_scale=3.0))
    plain, away = (
        small.inpaint(PHOTO, mask, "a red apple", 1, 3, guided, negative=text, resampling=TWICE)
        for text in ("", "a green tree")
    )
    assert (plain.images != away.images).any()


@pytest.mark.parametrize(
    "edit",
    [
        Inpaint("a red apple", resamples=2, jump_length=1),
        Inpaint(resamples=1, window=30),
        Outpaint(right=13, top=2, resamples=1, blend=3.0),
        Upscale(),
    ],
)
def test_a_picture_is_drawn_again_from_its_facts(unclip: UnCLIP, edit: Any) -> None:
    inputs = [PHOTO, masked(PHOTO.shape, 10, 10, 9, 9)][: 2 if isinstance(edit, Inpaint) else 1]
    found = draw_edit(unclip, edit, inputs, 2, 9)
    facts = found.metadata[0]
    assert facts["inputs"] == [picture_id(one) for one in inputs] and facts["verb"] == edit.verb
    again = draw_edit(
        unclip,
        from_dict(type(edit), facts["edit"]),
        inputs,
        seed=facts["seed"],
        sampling=from_dict(SamplingConfig, facts["sampling"]),
        prior=facts["prior"],
        upsample=facts["upsample"],
        indices=[facts["index"]],
    )
    np.testing.assert_array_equal(again.images[0], found.images[0])
    assert again.metadata[0] == facts


def test_without_a_prompt_the_surroundings_count(small: UnCLIP) -> None:
    mask = masked(PHOTO.shape, 10, 10, 8, 8)
    drawn = small.inpaint(PHOTO, mask, num_images=1, resampling=TWICE)
    assert drawn.metadata[0]["prompt"] == "" and drawn.metadata[0]["prior"] == "none"
    assert "prior" not in drawn.metadata[0]["weights"]
    with pytest.raises(UserError, match="leaves nothing of the photo"):
        small.inpaint(PHOTO, np.ones_like(mask), num_images=1)


# -- outpaint


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((20, 24), {"left": 5}),
        ((20, 24), {"left": 3, "right": 30, "top": 1, "bottom": 9}),
        ((20, 24), {"zoom_out": 1.7}),
        ((5, 33), {"bottom": 4, "zoom_out": 1.1}),
    ],
)
def test_a_photo_stays_in_its_extension(
    small: UnCLIP, shape: tuple[int, int], sides: dict[str, Any]
) -> None:
    photo = PHOTO[: shape[0]] if shape[0] == 5 else PHOTO[: shape[0], : shape[1]]
    top, bottom, left, right = Outpaint(**sides).margins(*photo.shape[:2])
    samples = small.outpaint(photo, num_images=1, resampling=TWICE, **sides)
    height, width = photo.shape[:2]
    assert samples.images.shape == (1, top + height + bottom, left + width + right, 3)
    inside = samples.images[0, top : top + height, left : left + width]
    np.testing.assert_array_equal(inside, photo)
    outside = np.ones(samples.images.shape[1:3], bool)
    outside[top : top + height, left : left + width] = False
    assert samples.images[0][outside].std() > 5  # all of it is drawn
    assert (samples.images[0][outside].max(axis=-1) > 0).mean() > 0.9


def test_windows_are_as_large_as_the_model_draws(unclip: UnCLIP, small: UnCLIP) -> None:
    def side(model: UnCLIP, edit: Any, *inputs: np.ndarray) -> int:
        how = replace(model.sampling, decoder=replace(TWO_STEPS, method="ddpm"))
        return canvas_of(Job(model, inputs, how), edit).windows[0].side

    photo = np.zeros((500, 700, 3), np.uint8)
    assert side(unclip, Outpaint(left=40), photo) == 256
    assert side(small, Outpaint(left=40), photo) == 16
    assert side(small, Outpaint(left=40, window=100), photo) == 100
    assert side(unclip, Outpaint(left=40), photo[:90]) == 90
    assert side(unclip, Inpaint(), photo, masked(photo.shape, 9, 9, 50, 20)) == 100
    assert side(unclip, Inpaint(context=3.0), photo, masked(photo.shape, 9, 9, 50, 20)) == 150
    assert side(unclip, Inpaint(), photo, masked(photo.shape, 9, 9, 2, 1)) == 16
    assert side(unclip, Inpaint(), photo, masked(photo.shape, 0, 0, 400, 20)) == 256
    assert [upsamplers_for(unclip, n, None) for n in (16, 20, 21, 64, 80, 81, 999)] == [
        *([], [], [256], [256], [256], [256, 1024], [256, 1024])
    ]
    assert upsamplers_for(unclip, 999, 256) == [256] and upsamplers_for(small, 999, None) == []


# -- upscale


@pytest.mark.parametrize(("shape", "factor"), [((9, 14), 4), ((3, 5), 16), ((1, 1), 4)])
def test_any_picture_is_upscaled(unclip: UnCLIP, shape: tuple[int, int], factor: Any) -> None:
    photo = PHOTO[: shape[0], : shape[1]]
    samples = unclip.upscale(photo, factor, 2)
    assert samples.images.shape == (2, factor * shape[0], factor * shape[1], 3)
    assert sorted(facts["index"] for facts in samples.metadata) == [0, 1]
    used = {name for name in samples.metadata[0]["weights"] if name.startswith("upsampler")}
    assert len(used) == (1 if factor == 4 else 2)
    assert "decoder" not in samples.metadata[0]["sampling"]
    inverted = unclip.upscale(255 - photo, factor, 1)
    assert np.abs(inverted.images[0].astype(int) - samples.images[0]).mean() > 1


def test_a_large_picture_is_upscaled_in_tiles(
    unclip: UnCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaling, "WHOLE", 1000)
    monkeypatch.setattr(upscaling, "TILE", 32)
    how = replace(unclip.sampling, tile_overlap=16)
    samples = unclip.upscale(PHOTO[:12, :12], sampling=how)
    assert samples.metadata[0]["sampling"]["tile"] == 32
    monkeypatch.setattr(upscaling, "WHOLE", 10**6)
    whole = unclip.upscale(PHOTO[:12, :12], sampling=how)
    assert whole.metadata[0]["sampling"]["tile"] is None
    same = unclip.upscale(PHOTO[:12, :12], sampling=replace(how, tile=32))
    np.testing.assert_array_equal(same.images, samples.images)


def test_the_upsampler_for_a_pictures_size() -> None:
    clip = stage("clip")
    first = stage("upsampler")
    recipe: Any = first.recipe
    unet = replace(recipe.model.unet, image_size=1024)
    large = toys.changed(recipe, model={"unet": unet}, data={"image_size": 1024})
    second = replace(first, recipe=large)
    model = UnCLIP({"clip": clip, "upsampler_256": first, "upsampler_1024": second})
    sides = (1, 64, 120, 136, 256, 3000)
    found = [upscaling.upsamplers_of(model, side, 4) for side in sides]
    assert found == [[256]] * 3 + [[1024]] * 3
    assert upscaling.upsamplers_of(model, 64, 16) == [256, 1024]
    one = UnCLIP({"clip": clip, "upsampler_256": first})
    assert upscaling.upsamplers_of(one, 3000, 4) == [256]


# -- what is refused


def test_mistakes_are_named(unclip: UnCLIP, small: UnCLIP) -> None:
    mask = masked(PHOTO.shape, 1, 1, 3, 3)
    with pytest.raises(UserError, match="the mask has 50 x 37 pixels and the photo 37 x 50"):
        unclip.inpaint(PHOTO, mask.T, "a")
    with pytest.raises(UserError, match="give 1 or more"):
        unclip.inpaint(PHOTO, mask, "a", 0)
    with pytest.raises(UserError, match="nothing is to be added"):
        unclip.outpaint(PHOTO)
    with pytest.raises(UserError, match=r"zoom_out is 0\.5: give 1 to 16"):
        unclip.outpaint(PHOTO, zoom_out=0.5)
    with pytest.raises(UserError, match="limit is 64000000"):
        unclip.outpaint(PHOTO, left=16000, top=16000)
    with pytest.raises(UserError, match="limit is 64000000 in all: give a smaller one, or factor"):
        unclip.upscale(np.zeros((999, 999, 3), np.uint8), 16)
    with pytest.raises(UserError, match="factor is 3: give 4 or 16"):
        unclip.upscale(PHOTO, 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no upsampler_256 stage"):
        small.upscale(PHOTO)
    with pytest.raises(UserError, match="no upsampler_256 stage"):
        small.outpaint(PHOTO, left=9, upsample=256)
    solver = replace(small.sampling, decoder=replace(TWO_STEPS, method="unipc"))
    with pytest.raises(UserError, match="the sampler is unipc, which cannot go back"):
        small.inpaint(PHOTO, mask, "a", 1, 0, solver)
    with pytest.raises(UserError, match=r"context is 0\.5"):
        Inpaint(context=0.5)
    with pytest.raises(UserError, match="window is 4: give 8"):
        Outpaint(left=3, window=4)
    with pytest.raises(UserError, match="inpaint starts from 2 pictures, not from 1"):
        draw_edit(small, Inpaint(), [PHOTO])
