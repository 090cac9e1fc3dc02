"""The other priors, the upsamplers and steering, on tiny random stages of one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toys
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.generation.code_sampling import CodeSamplerConfig
from unclip_jax.generation.keys import fold_keys, image_keys
from unclip_jax.generation.programs import PRIORS
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.models.embedding_codes import CodeConfig, fit_codes
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_stage, save_stage, weights_id

TWO_STEPS = SamplerConfig(method="ddim", num_steps=2)
SAMPLING = SamplingConfig(
    prior=SamplerConfig(num_steps=3, thresholding="none"),
    decoder=TWO_STEPS,
    upsampler_256=TWO_STEPS,
    batch_size=2,
)
TEXTS = ("a red apple", "a blue car", "a green tree")


def stage(name: str, clip_id: str | None = None) -> Stage:
    recipe = toys.recipe(name)
    if name == "upsampler":  # convolutions alone: the size is a name
        unet = replace(recipe.model.unet, image_size=256)
        recipe = toys.changed(recipe, model={"unet": unet}, data={"image_size": 256})
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    params = jax.tree.map(jnp.asarray, toys.random_like(shapes))
    codes = None
    if name == "ar_prior":
        pairs = np.random.default_rng(0).standard_normal((2, 50, 16))
        image, text = pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)
        codes = fit_codes(
            lambda: [(image, text)], CodeConfig(components=4, buckets=8, dot_buckets=8)
        )
    reads = name not in ("upsampler", "classifier")
    tokenizer = train_bpe(TEXTS, 600, 12) if reads else None
    return Stage(recipe, params, tokenizer, 3, clip_id or weights_id(params), codes)


@pytest.fixture(scope="module")
def unclip() -> UnCLIP:
    clip = stage("clip")
    on_clip = (*PRIORS.values(), "decoder")
    stages = {"clip": clip, **{name: stage(name, clip.clip_id) for name in on_clip}}
    alone = {name: stage(name) for name in ("noised_clip", "classifier")}
    return UnCLIP({**stages, **alone, "upsampler_256": stage("upsampler")}, SAMPLING)


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_draws_unit_vectors_row_by_row(prior: str, unclip: UnCLIP) -> None:
    keys = image_keys(4, range(3))
    drawn = unclip.sample_prior(TEXTS, keys, prior=prior)
    assert drawn.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-5)
    alone = unclip.sample_prior(TEXTS[2:], keys[2:], prior=prior)
    np.testing.assert_array_equal(alone[0], drawn[2])
    # The caption is read. It moves a random network's logits by a hundredth: guidance shows it.
    how = replace(SAMPLING, ar_prior=CodeSamplerConfig(guidance_scale=300.0))
    many = image_keys(5, range(8))
    apple, car = (unclip.sample_prior([text] * 8, many, how, prior) for text in TEXTS[:2])
    assert np.abs(apple - car).max() > 1e-3


def test_an_upsampler_makes_pictures_of_four_times_the_side(unclip: UnCLIP) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    keys = image_keys(0, range(3))
    large = unclip.upsample(pictures, keys, 256)
    assert large.shape == (3, 32, 48, 3) and large.dtype == np.uint8
    np.testing.assert_array_equal(unclip.upsample(pictures[1:2], keys[1:2], 256)[0], large[1])
    inverted = unclip.upsample(255 - pictures, keys, 256)
    assert np.abs(inverted.astype(int) - large).mean() > 1  # the small picture is read


def test_text_to_image_takes_every_road(unclip: UnCLIP) -> None:
    stages_seen: list[str] = []
    samples = unclip.text_to_image(
        "a red apple", 1, prior="ar", upsample=256, on_stage=stages_seen.append
    )
    assert samples.images.shape == (1, 64, 64, 3)
    assert stages_seen == ["ar_prior", "decoder", "upsampler_256"]
    facts = samples.metadata[0]
    assert facts["prior"] == "ar" and facts["upsample"] == 256
    keys = image_keys(0, [0])
    small = unclip.decode(samples.embeddings, TEXTS[:1], fold_keys(keys, 1), as_float=True)
    expected = unclip.upsample(small, fold_keys(keys, 2), 256)  # not rounded in between
    np.testing.assert_array_equal(samples.images, expected)


def test_steering_changes_what_it_knows(unclip: UnCLIP) -> None:
    keys, vectors = image_keys(0, range(3)), unclip.encode_text(TEXTS)
    plain = unclip.decode(vectors, TEXTS, keys).astype(int)
    by_clip = unclip.decode(vectors, TEXTS, keys, replace(SAMPLING, clip_guidance=5.0))
    assert all(np.abs(by_clip - plain).max(axis=(1, 2, 3)) > 0)
    # The classes are "red" and "green": the car has none and stays as it is.
    by_class = unclip.decode(vectors, TEXTS, keys, replace(SAMPLING, classifier_guidance=50.0))
    changed = np.abs(by_class - plain).max(axis=(1, 2, 3))
    assert changed[0] > 0 and changed[1] == 0 and changed[2] > 0


def test_each_picture_may_have_its_own_guidance(unclip: UnCLIP) -> None:
    keys, vectors = image_keys(0, range(3)), unclip.encode_text(TEXTS)
    scales = (1.0, 4.0, 8.0)
    mixed = unclip.decode(vectors, TEXTS, keys, guidance=scales).astype(int)
    for row, scale in enumerate(scales):
        how = replace(SAMPLING, decoder=replace(TWO_STEPS, guidance_scale=scale))
        alone = unclip.decode(vectors, TEXTS, keys, how).astype(int)
        assert np.abs(mixed[row] - alone[row]).max() <= 1  # another program rounds differently
        if scale > 1:
            assert np.abs(mixed[row] - unclip.decode(vectors, TEXTS, keys)[row]).max() > 1


def test_a_decoder_draws_from_captions_alone(unclip: UnCLIP) -> None:
    """The embedding dropped, as in its training: GLIDE's way with unCLIP's network."""
    keys = image_keys(0, range(3))
    alone = unclip.decode(None, TEXTS, keys)
    samples = unclip.text_to_image(TEXTS[0], 1, prior="none")
    assert samples.embeddings is None and samples.metadata[0]["prior"] == "none"
    inner = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    np.testing.assert_array_equal(samples.images[0], unclip.decode(None, TEXTS[:1], inner[:1])[0])
    other = unclip.decode(None, TEXTS[::-1], keys).astype(int)
    assert np.abs(other - alone)[0].max() > 0  # the caption is read
    drawn = unclip.decode(unclip.encode_text(TEXTS), TEXTS, keys).astype(int)
    assert np.abs(drawn - alone).max() > 0


def test_a_decoder_without_embeddings_needs_no_prior(unclip: UnCLIP) -> None:
    recipe = toys.recipe("decoder", model={"embedding_width": None})
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    assert not any("embedding_to" in str(path) for path in shapes)
    params = jax.tree.map(jnp.asarray, toys.random_like(shapes))
    clip = unclip.clip
    glide = Stage(recipe, params, clip.tokenizer, 3, clip.clip_id)
    model = UnCLIP({"clip": clip, "decoder": glide}, SAMPLING)
    samples = model.text_to_image(TEXTS, 1)
    assert samples.images.shape == (3, 16, 16, 3) and samples.metadata[0]["prior"] == "none"
    with pytest.raises(UserError, match="reads captions alone"):
        model.decode(unclip.encode_text(TEXTS), TEXTS, image_keys(0, range(3)))


def test_stages_survive_the_disk(unclip: UnCLIP, tmp_path: Path) -> None:
    for name, kept in unclip.stages.items():
        save_stage(kept, tmp_path / name, "float32")
        found = load_stage(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, found.params, kept.params)
        assert found.recipe == kept.recipe and (found.tokenizer is None) == (kept.tokenizer is None)
        jax.tree.map(np.testing.assert_array_equal, found.codes, kept.codes)
    loaded = UnCLIP.load(tmp_path)
    assert loaded.stages.keys() == unclip.stages.keys()


def test_mistakes_are_named(unclip: UnCLIP) -> None:
    with pytest.raises(UserError, match="no upsampler_1024 stage"):
        unclip.text_to_image("a", 1, upsample=1024)
    with pytest.raises(UserError, match="upsample is 128: give 256 or 1024"):
        unclip.text_to_image("a", 1, upsample=128)
    with pytest.raises(UserError, match="prior 'magic' is unknown"):
        unclip.text_to_image("a", 1, prior="magic")
    with pytest.raises(UserError, match="was trained for 256 pixels"):
        UnCLIP({"clip": unclip.clip, "upsampler_1024": unclip.stage("upsampler_256")})


def test_another_network_can_take_the_last_step_of_an_upsampler(unclip: UnCLIP) -> None:
    first, last = unclip.stages["upsampler_256"], stage("upsampler")
    changed = jax.tree.map(lambda leaf: -leaf, last.params)
    both = UnCLIP(
        {**unclip.stages, "upsampler_256_last": replace(last, params=changed)}, unclip.sampling
    )
    same = UnCLIP({**unclip.stages, "upsampler_256_last": first}, unclip.sampling)
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    keys = image_keys(0, range(1))

    def drawn(model: UnCLIP, steps: int) -> np.ndarray:
        how = replace(unclip.sampling, upsampler_256=replace(TWO_STEPS, num_steps=steps))
        return model.upsample(images, keys, 256, how, as_float=True)

    # Another program rounds differently.
    np.testing.assert_allclose(drawn(same, 2), drawn(unclip, 2), rtol=0, atol=2e-6)
    assert np.abs(drawn(both, 2) - drawn(unclip, 2)).max() > 1e-3
    # A chain of one step is its last step.
    alone = UnCLIP(
        {**unclip.stages, "upsampler_256": replace(first, params=changed)}, unclip.sampling
    )
    np.testing.assert_allclose(drawn(both, 1), drawn(alone, 1), rtol=0, atol=2e-6)


def test_noise_can_be_given(unclip: UnCLIP) -> None:
    keys, random = image_keys(3, range(2)), np.random.default_rng(0)
    size = unclip.stage("decoder").recipe.model.unet.image_size  # pyright: ignore
    how = replace(
        unclip.sampling,
        num_candidates=1,
        decoder=SamplerConfig(method="ddpm", num_steps=3),
    )
    vectors = random.standard_normal((2, 3, 16)).astype(np.float32)
    drawn = unclip.sample_prior(TEXTS[:2], keys, how, noise=vectors)
    again = unclip.sample_prior(TEXTS[:2], image_keys(9, range(2)), how, noise=vectors)
    np.testing.assert_array_equal(drawn, again)  # no key is read
    assert not np.array_equal(drawn, unclip.sample_prior(TEXTS[:2], keys, how))
    pictures = random.standard_normal((2, 3, size, size, 3)).astype(np.float32)
    first = unclip.decode(drawn, TEXTS[:2], keys, how, noise=pictures)
    other = unclip.decode(drawn, TEXTS[:2], image_keys(9, range(2)), how, noise=pictures)
    np.testing.assert_array_equal(first, other)
    with pytest.raises(UserError, match="num_candidates"):
        unclip.sample_prior(TEXTS[:2], keys, noise=vectors)
    with pytest.raises(UserError, match="2 draws for 3 steps"):
        unclip.decode(drawn, TEXTS[:2], keys, how, noise=pictures[:, :2])


def test_a_decoder_can_read_clips_own_text(unclip: UnCLIP) -> None:
    """Karlo's way: no text encoder of its own; without a caption's words pictures differ."""
    recipe = toys.recipe("decoder")
    clip = unclip.clip.recipe.model  # pyright: ignore
    model = replace(recipe.model, text=None, clip_text_width=clip.text.width, masks_padding=True)
    recipe = replace(recipe, model=model)
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    assert "text" not in shapes
    params = jax.tree.map(jnp.asarray, toys.random_like(shapes))
    decoder = Stage(recipe, params, unclip.tokenizer, 3, unclip.clip.clip_id)
    karlo = UnCLIP({"clip": unclip.clip, "decoder": decoder}, unclip.sampling)
    vectors, keys = unclip.encode_text(TEXTS[:1]).repeat(2, 0), image_keys(0, [0, 0])
    images = karlo.decode(vectors, TEXTS[:2], keys, as_float=True)
    assert not np.array_equal(images[0], images[1])
    alone = karlo.decode(vectors[:1], TEXTS[:1], keys[:1], as_float=True)
    np.testing.assert_array_equal(alone[0], images[0])
