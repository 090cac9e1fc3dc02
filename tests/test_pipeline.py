"""UnCLIP on tiny random stages: rows are independent, seeds hold, mistakes are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from unclip_jax.cli.overrides import load_recipe
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.generation.keys import image_keys
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_stage, save_stage, weights_id

SAMPLING = SamplingConfig(
    prior=SamplerConfig(num_steps=3, thresholding="none", guidance_scale=2.0),
    decoder=SamplerConfig(method="ddim", num_steps=2, guidance_scale=2.0),
    batch_size=2,
)


def _stage(repository: Path, name: str, clip_id: str | None = None) -> Stage:
    recipe = load_recipe(str(repository / "configs" / "toy" / f"{name}.py"))
    params = jax.jit(lambda key: init_params(recipe, key))(jax.random.key(len(name)))
    # Zero-initialised layers would hide every condition.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    tokenizer = train_bpe(["a red apple", "a blue car"], 600, 12)
    return Stage(recipe, params, tokenizer, 7, clip_id or weights_id(params))


@pytest.fixture(scope="module")
def stages(repository: Path) -> dict[str, Stage]:
    clip = _stage(repository, "clip")
    return {
        "clip": clip,
        "prior": _stage(repository, "prior", clip.clip_id),
        "decoder": _stage(repository, "decoder", clip.clip_id),
    }


@pytest.fixture(scope="module")
def unclip(stages: dict[str, Stage]) -> UnCLIP:
    return UnCLIP(stages, SAMPLING, "toy")


def with_guidance(scale: float) -> SamplingConfig:
    return replace(SAMPLING, decoder=replace(SAMPLING.decoder, guidance_scale=scale))


def test_a_picture_depends_on_its_prompt_seed_and_index_only(unclip: UnCLIP) -> None:
    both = unclip.text_to_image(["a red apple", "a blue car"], num_images=3, seed=5)
    alone = unclip.text_to_image("a blue car", num_images=2, seed=5)
    np.testing.assert_array_equal(both.images[3:5], alone.images)
    np.testing.assert_array_equal(both.embeddings[3:5], alone.embeddings)
    other = unclip.text_to_image("a blue car", num_images=2, seed=6)
    assert not np.array_equal(other.images, alone.images)
    assert not np.array_equal(both.images[0], both.images[1])
    assert not np.array_equal(both.images[0], both.images[3])


def test_another_call_compiles_nothing(unclip: UnCLIP) -> None:
    """Nor any small operation beside the stages: XLA is asked for nothing at all."""
    compiled: list[str] = []

    def hear(event: str, seconds: float, **about: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(about))

    unclip.text_to_image("a red apple", num_images=2, sampling=with_guidance(2.0))
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        unclip.text_to_image("a blue car", num_images=2, seed=1, sampling=with_guidance(2.0))
        unclip.text_to_image("a red apple", num_images=1, sampling=with_guidance(3.5))
        many = ["a", "b", "c", "d", "e"]
        unclip.text_to_image(many, num_images=3, seed=9, sampling=with_guidance(2.0))
        assert not compiled
        jax.jit(lambda x: x + 12.5)(np.ones(7, np.float32))
        assert compiled  # the event is still called that
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)


def test_embeddings_have_unit_norm(unclip: UnCLIP) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    for vectors in (unclip.encode_text(["a", "b", "c"]), unclip.encode_image(images)):
        assert vectors.shape == (3, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_the_candidate_nearest_to_the_text_is_kept(unclip: UnCLIP) -> None:
    texts, keys = ["a red apple"] * 4, image_keys(3, range(4))
    text = unclip.encode_text(texts[:1])[0]
    one = unclip.sample_prior(texts, keys, replace(SAMPLING, num_candidates=1)) @ text
    many = unclip.sample_prior(texts, keys, replace(SAMPLING, num_candidates=8)) @ text
    assert many.mean() > one.mean()


def test_guidance_of_one_is_the_plain_model(unclip: UnCLIP) -> None:
    keys, texts = image_keys(0, range(2)), ["a red apple", "a blue car"]
    vectors = unclip.encode_text(texts)
    plain = unclip.decode(vectors, texts, keys, with_guidance(1.0))
    nearly = unclip.decode(vectors, texts, keys, with_guidance(1.0 + 1e-6))
    assert np.abs(plain.astype(int) - nearly.astype(int)).max() <= 1
    strong = unclip.decode(vectors, texts, keys, with_guidance(4.0))
    assert np.abs(plain.astype(int) - strong.astype(int)).max() > 1


def test_a_saved_model_draws_what_the_stages_draw(
    stages: dict[str, Stage], unclip: UnCLIP, tmp_path: Path
) -> None:
    for name, stage in stages.items():
        save_stage(stage, tmp_path / name, "float32")
    loaded = replace(UnCLIP.load(tmp_path), sampling=SAMPLING, _compiled={})
    samples = loaded.text_to_image("a red apple", num_images=2, seed=1)
    expected = unclip.text_to_image("a red apple", num_images=2, seed=1)
    np.testing.assert_array_equal(samples.images, expected.images)
    paths = samples.save(tmp_path / "out")
    assert [path.name for path in paths] == [
        "00000_a-red-apple_0.png",
        "00001_a-red-apple_1.png",
        "grid.png",
    ]
    with Image.open(paths[1]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), samples.images[1])
        facts = json.loads(picture.text["unclip"])  # type: ignore[attr-defined]
    assert facts["prompt"] == "a red apple" and facts["seed"] == 1 and facts["index"] == 1


def test_kernels_may_stay_in_bfloat16(stages: dict[str, Stage], tmp_path: Path) -> None:
    """Half the memory, and not another bit: every layer reads them as the float32 they were."""
    for name, stage in stages.items():
        save_stage(stage, tmp_path / name, "bfloat16")
    loaded = UnCLIP.load(tmp_path)
    kernel = loaded.stage("decoder").params["unet"]["conv_in"]["kernel"]
    assert kernel.dtype == "bfloat16"
    wide = {name: load_stage(tmp_path / name) for name in stages}
    assert {str(x.dtype) for x in jax.tree.leaves(wide["decoder"].params)} == {"float32"}
    pictures = [
        UnCLIP(own, SAMPLING).text_to_image("a red apple", num_images=2).images
        for own in (loaded.stages, wide)
    ]
    np.testing.assert_array_equal(*pictures)


def test_some_of_the_stages(stages: dict[str, Stage], tmp_path: Path) -> None:
    """What is left out is not read, so it may be broken."""
    for name, stage in stages.items():
        save_stage(stage, tmp_path / name, "float32")
    (tmp_path / "decoder" / "model.safetensors").write_bytes(b"")
    loaded = UnCLIP.load(tmp_path, only=("clip", "prior"))
    assert set(loaded.stages) == {"clip", "prior"}
    with pytest.raises(UserError, match="stage 'prio' is unknown"):
        UnCLIP.load(tmp_path, only=("clip", "prio"))
    with pytest.raises(UserError, match="needs its clip stage"):
        UnCLIP.load(tmp_path, only=("prior",))
    with pytest.raises(UserError, match="decoder"):
        UnCLIP.load(tmp_path)


def test_mistakes_are_named(stages: dict[str, Stage], tmp_path: Path) -> None:
    prior, decoder = stages["prior"], stages["decoder"]
    with pytest.raises(UserError, match="no prior stage"):
        UnCLIP({"clip": stages["clip"], "decoder": decoder}).text_to_image("a")
    with pytest.raises(UserError, match="was trained for CLIP 0123"):
        UnCLIP({**stages, "prior": replace(prior, clip_id="0123")})
    with pytest.raises(UserError, match="the prior given is a DecoderRecipe"):
        UnCLIP({**stages, "prior": decoder, "decoder": prior})
    with pytest.raises(UserError, match="stage 'painter' is unknown"):
        UnCLIP({**stages, "painter": decoder})
    with pytest.raises(UserError, match="needs its clip stage"):
        UnCLIP({"prior": prior})
    with pytest.raises(UserError, match="neither a folder nor shipped"):
        UnCLIP.load(tmp_path / "missing")
    with pytest.raises(UserError, match="no clip stage"):
        UnCLIP.load(tmp_path)
    with pytest.raises(UserError, match="at least one prompt"):
        UnCLIP(stages).text_to_image([])
