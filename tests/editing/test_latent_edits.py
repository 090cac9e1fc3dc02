"""Edits on latents, on tiny random stages: what each is made from, and that nothing else enters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.generation.test_all_stages import SAMPLING, stage
from unclip_jax.config import from_dict
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.editing.drawing import draw_edit
from unclip_jax.editing.settings import (
    CompareConditioning,
    Components,
    Diff,
    Interpolate,
    Mix,
    Vary,
)
from unclip_jax.errors import UserError
from unclip_jax.generation.keys import fold_keys, image_keys
from unclip_jax.pipeline import UnCLIP

PICTURES = list(np.random.default_rng(3).integers(0, 256, (3, 20, 28, 3), dtype=np.uint8))
STEPS = replace(
    SAMPLING,
    decoder=SamplerConfig(method="ddim", num_steps=4, iterations=3, thresholding="none"),
)


@pytest.fixture(scope="module")
def unclip() -> UnCLIP:
    clip = stage("clip")
    on_clip = {name: stage(name, clip.clip_id) for name in ("prior", "ar_prior", "decoder")}
    # A random network that predicts v has an inverse: its output is a small part of the next state.
    recipe: Any = on_clip["decoder"].recipe
    diffusion = replace(recipe.diffusion, prediction="v")
    on_clip["decoder"] = replace(on_clip["decoder"], recipe=replace(recipe, diffusion=diffusion))
    return UnCLIP({"clip": clip, **on_clip, "upsampler_256": stage("upsampler")}, STEPS, "toy")


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_no_eta_reconstructs(unclip: UnCLIP) -> None:
    samples = unclip.reconstruct(PICTURES[:2])
    from unclip_jax.data.images import resize_and_crop

    for picture, drawn in zip(PICTURES, samples.images, strict=False):
        assert np.abs(resize_and_crop(picture, 16).astype(int) - drawn).max() <= 2
    varied = unclip.vary(PICTURES[0], 1)
    assert difference(varied.images[0], samples.images[0]) > 5


def test_candidates_come_best_first_and_do_not_depend_on_each_other(unclip: UnCLIP) -> None:
    four = unclip.vary(PICTURES[0], 4, seed=7)
    assert four.scores is not None and list(four.scores) == sorted(four.scores, reverse=True)
    two = unclip.vary(PICTURES[0], 2, seed=7)
    by_index = {
        facts["index"]: image for facts, image in zip(four.metadata, four.images, strict=True)
    }
    assert sorted(by_index) == [0, 1, 2, 3]
    for facts, image in zip(two.metadata, two.images, strict=True):
        np.testing.assert_array_equal(image, by_index[facts["index"]])
    assert difference(four.images[0], four.images[1]) > 1


@pytest.mark.parametrize("noise", ["inverted", "drawn"])
def test_interpolations_pass_through_every_picture(unclip: UnCLIP, noise: str) -> None:
    strip = unclip.interpolate(PICTURES, 5, seed=2, noise=noise)  # pyright: ignore
    assert strip.frames == 5 and [facts["index"] for facts in strip.metadata] == [0, 1, 2, 3, 4]
    for frame, picture in zip((0, 2, 4), PICTURES, strict=True):
        if noise == "inverted":
            expected = unclip.reconstruct([picture]).images[0]
        else:
            embedding = unclip.encode_image(_square(unclip, picture))
            keys = fold_keys(image_keys(2, [0]), 1)
            expected = unclip.decode(embedding, [""], keys)[0]
        assert np.abs(expected.astype(int) - strip.images[frame]).max() <= 2
    assert difference(strip.images[1], strip.images[0]) > 0


def _square(unclip: UnCLIP, picture: np.ndarray) -> np.ndarray:
    from unclip_jax.editing.job import clip_squares

    return clip_squares(unclip, [picture])


def test_a_diff_begins_with_the_picture_and_reads_both_descriptions(unclip: UnCLIP) -> None:
    strip = unclip.diff(PICTURES[0], "a red apple", "a blue car", frames=3)
    start = unclip.reconstruct(PICTURES[:1]).images[0]
    assert np.abs(start.astype(int) - strip.images[0]).max() <= 2
    for other in (
        unclip.diff(PICTURES[0], "a green tree", "a blue car", frames=3),
        unclip.diff(PICTURES[0], "a red apple", frames=3),
        unclip.diff(PICTURES[0], "a red apple", "a blue car", frames=3, theta=0.25),
    ):
        assert difference(other.images[2], strip.images[2]) > 0.1
    half = unclip.diff(PICTURES[0], "a red apple", "a blue car", frames=2, theta=0.25)
    np.testing.assert_array_equal(half.images[1], strip.images[1])


def test_a_mix_follows_its_weights(unclip: UnCLIP) -> None:
    both = unclip.mix(PICTURES[:2], ["a red apple"], (1, 1, 2), 2, seed=1)
    assert difference(both.images[0], both.images[1]) > 1
    alone = unclip.mix(PICTURES[:1], num_images=1, seed=1)
    only = unclip.mix(PICTURES[:2], weights=(1, 0), num_images=1, seed=1)
    np.testing.assert_array_equal(alone.images, only.images)
    away = unclip.mix(PICTURES[:2], weights=(1, -0.5), num_images=1, seed=1)
    assert difference(alone.images, away.images) > 0.1


def test_a_negative_prompt_leads_away(unclip: UnCLIP) -> None:
    how = replace(STEPS, decoder=replace(STEPS.decoder, guidance_scale=3.0))
    plain, empty, other = (
        unclip.text_to_image("a red apple", 1, 0, how, negative=negative).images
        for negative in ("", " ", "a blue car")
    )
    assert difference(plain, other) > 0.5 and difference(empty, other) > 0.1
    # Without guidance there is nothing to lead away from.
    calm = unclip.text_to_image("a red apple", 1, negative="a blue car").images
    assert difference(calm, unclip.text_to_image("a red apple", 1).images) <= 0.01


def test_all_components_are_the_embedding(unclip: UnCLIP) -> None:
    samples = unclip.pca(PICTURES[0], (1, 2, 4, 99))
    assert samples.images.shape[0] == 3  # the model has four
    assert difference(samples.images[0], samples.images[2]) > 0.1
    with pytest.raises(UserError, match="the model has 4"):
        unclip.pca(PICTURES[0], (99,))


def test_three_ways_of_conditioning(unclip: UnCLIP) -> None:
    samples = unclip.compare_conditioning("a red apple", 2, seed=5)
    assert samples.frames == 3 and len(samples.images) == 6
    drawn = unclip.text_to_image("a red apple", 2, seed=5)
    np.testing.assert_array_equal(samples.images[2::3], drawn.images)
    assert difference(samples.images[0], samples.images[1]) > 0.1


EDITS = [
    (Vary(0.5, "inverted", "a red apple"), 1),
    (Interpolate(3, "drawn"), 2),
    (Diff("a red apple", "a blue car", 3), 1),
    (Mix(("a red apple",), (1.0, 2.0), negative="a blue car"), 1),
    (Components((1, 3)), 1),
    (CompareConditioning("a red apple"), 0),
]


@pytest.mark.parametrize(("edit", "count"), EDITS, ids=lambda value: getattr(value, "verb", ""))
def test_its_facts_are_enough_to_draw_a_picture_again(
    unclip: UnCLIP, edit: Vary, count: int
) -> None:
    samples = draw_edit(unclip, edit, PICTURES[:count], seed=9, upsample=256)
    assert samples.images.shape[1:] == (64, 64, 3)  # a toy of 16 pixels
    facts = samples.metadata[-1]
    again = from_dict(type(edit), facts["edit"])
    assert again == edit
    one = draw_edit(
        unclip, again, PICTURES[:count], seed=facts["seed"], upsample=256, indices=[facts["index"]]
    )
    np.testing.assert_array_equal(one.images[0], samples.images[-1])
    assert one.metadata[0] == facts


@pytest.mark.parametrize(
    ("edit", "count", "words"),
    [
        (Vary(), 2, "vary starts from 1 picture, not from 2"),
        (Interpolate(), 1, "interpolate starts from 2 or more pictures, not from 1"),
        (Mix(), 0, "nothing to mix"),
        (Mix(("a",), (1.0, 2.0, 3.0)), 1, "weights has 3 numbers for 1 picture and 1 text"),
        (Diff("a red apple", "a red apple"), 1, "are the same to CLIP"),
    ],
)
def test_mistakes_are_named(unclip: UnCLIP, edit: Vary, count: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw_edit(unclip, edit, PICTURES[:count])


def test_what_draws_nothing_makes_one_picture(unclip: UnCLIP) -> None:
    assert len(unclip.vary(PICTURES[0], eta=0.0).images) == 1
    with pytest.raises(UserError, match="draws no noise"):
        unclip.vary(PICTURES[0], 2, eta=0.0)


def test_previews_end_with_the_picture(unclip: UnCLIP) -> None:
    prompts = ["a red apple", "a blue car", "a green tree"]
    expected = unclip.text_to_image(prompts, 1, seed=3).images
    seen = list(unclip.stream(prompts, 1, seed=3, every=1))
    assert [preview.step for preview in seen] == [1, 2, 3, 4]
    assert [preview.is_last for preview in seen] == [False, False, False, True]
    assert np.abs(seen[-1].images.astype(int) - expected).max() <= 1
    assert difference(seen[0].images, expected) > 1
    compiled = len(unclip._compiled)
    other = list(unclip.stream(prompts, 1, seed=3, every=3))
    assert len(unclip._compiled) == compiled and [one.step for one in other] == [3, 4]
    np.testing.assert_array_equal(other[0].images, seen[2].images)
    large = list(unclip.stream(prompts[:1], 1, seed=3, every=4, upsample=256))
    drawn = unclip.text_to_image(prompts[:1], 1, seed=3, upsample=256).images
    assert np.abs(large[-1].images.astype(int) - drawn).max() <= 1
