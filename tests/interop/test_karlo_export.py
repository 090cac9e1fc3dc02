"""Stages as Karlo: diffusers and transformers load them and compute what we compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.interop.clip_models import live, normalised, outputs
from tests.interop.clip_models import random_params as random_clip
from tests.interop.comparison import assert_same_trees, error, run
from unclip_jax.config import DataConfig
from unclip_jax.data.tokenizer import TokenizerConfig, train_bpe
from unclip_jax.errors import UserError
from unclip_jax.interop.infer_unet import HeadOptions
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.karlo.export import (
    DECODER_FILE,
    PRIOR_FILE,
    STATISTICS_FILE,
    UPSAMPLER_FILE,
    export_karlo_folder,
    export_karlo_original,
)
from unclip_jax.interop.karlo.original_files import Hyperparameters, open_original_files
from unclip_jax.interop.open_file import open_file
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.decoder import Decoder, DecoderConfig
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNet, UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, weights_id

WIDTH, CONTEXT = 12, 11
TOKENIZER = train_bpe(["a red apple", "two green hearts"] * 3, 530, CONTEXT)
CLIP_MODEL = CLIPConfig(
    embedding_width=WIDTH,
    image_size=14,
    patch_size=7,
    vision=TransformerConfig(width=18, depth=2, heads=3, activation="quick_gelu"),
    text=TransformerConfig(width=WIDTH, depth=2, heads=2, activation="quick_gelu"),
    vocab_size=TOKENIZER.vocab_size,
    context_length=CONTEXT,
    unit_embeddings=False,
)
PRIOR = PriorRecipe(
    model=PriorConfig(WIDTH, WIDTH, CONTEXT, TransformerConfig(20, 2, 2), 1.0, is_whitened=True)
)
DECODER = DecoderRecipe(
    model=DecoderConfig(
        UNetConfig(
            image_size=8,
            channels=8,
            channel_mult=(1, 2),
            depth=(1,),
            attention_resolutions=(4,),
            head_channels=4,
            context_width=10,
            groups=2,
        ),
        text=None,
        clip_text_width=WIDTH,
        embedding_width=WIDTH,
        num_embedding_tokens=3,
        embedding_scale=1.0,
        null_embedding="learned",
        masks_padding=True,
    ),
    data=DataConfig(image_size=8),
)
UPSAMPLER = UpsamplerRecipe(
    model=UpsamplerConfig(
        UNetConfig(
            image_size=32,
            in_channels=6,
            out_channels=3,
            channels=4,
            channel_mult=(1, 2),
            depth=(1,),
            attention_resolutions=(),
            has_middle_attention=False,
            head_channels=8,
            time_norm="additive",
            groups=2,
        ),
        resize="cubic",
    ),
    diffusion=DiffusionConfig(variance="fixed_small"),
    data=DataConfig(image_size=32),
)


@pytest.fixture(scope="module", autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


def random_stage(recipe: Any, seed: int = 0) -> Stage:
    """A stage in which no parameter is without influence and no state explodes."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))

    def leaf(path: Any, shape: Any) -> np.ndarray:
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1 + np.float32(0.2) * noise
        fan_in = np.prod(shape.shape[-4:-1]) if path[-1].key == "kernel" else 9
        return noise * np.float32(0.8 / np.sqrt(fan_in))

    params = jax.tree_util.tree_map_with_path(leaf, abstract)
    statistics = None
    if isinstance(recipe, PriorRecipe) and recipe.model.is_whitened:
        mean, deviation = rng.standard_normal((2, WIDTH)).astype(np.float32)
        statistics = EmbeddingStatistics(mean, np.abs(deviation) + np.float32(0.1))
    return Stage(recipe, params, TOKENIZER, 0, "", statistics=statistics)


def clip_stage(**changes: Any) -> Stage:
    model = replace(CLIP_MODEL, **changes)
    recipe = CLIPRecipe(
        model=model,
        tokenizer=TokenizerConfig("trained", TOKENIZER.vocab_size, CONTEXT),
        data=DataConfig(image_size=14),
    )
    params = random_clip(model, 0)
    return Stage(recipe, params, TOKENIZER, 0, weights_id(params))


def karlo() -> dict[str, Stage]:
    return {
        "clip": clip_stage(),
        "prior": random_stage(PRIOR, 1),
        "decoder": random_stage(DECODER, 2),
        "upsampler_256": random_stage(UPSAMPLER, 3),
        "upsampler_256_last": random_stage(UPSAMPLER, 4),
    }


COMPONENTS = [
    "decoder",
    "decoder_scheduler",
    "feature_extractor",
    "image_encoder",
    "prior",
    "prior_scheduler",
    "super_res_first",
    "super_res_last",
    "super_res_scheduler",
    "text_encoder",
    "text_proj",
    "tokenizer",
]


def assert_same_stages(found: dict[str, Stage], expected: dict[str, Stage]) -> None:
    assert found.keys() == expected.keys()
    for name in set(expected) - {"clip"}:
        ours, theirs = found[name], expected[name]
        assert ours.recipe.model == theirs.recipe.model  # pyright: ignore
        assert ours.recipe.diffusion == theirs.recipe.diffusion  # pyright: ignore
        assert_same_trees(ours.params, theirs.params)
        if theirs.statistics is not None:
            assert ours.statistics is not None
            np.testing.assert_array_equal(ours.statistics.mean, theirs.statistics.mean)
            np.testing.assert_array_equal(ours.statistics.deviation, theirs.statistics.deviation)


def test_a_folder_comes_back_bit_for_bit(tmp_path: Path) -> None:
    stages = karlo()
    assert export_karlo_folder(stages, tmp_path / "out") == COMPONENTS
    found = open_diffusers_folder(tmp_path / "out").load()
    assert_same_stages(found, stages)
    for tower in ("text", "vision"):
        assert_same_trees(found["clip"].params[tower], stages["clip"].params[tower])
    assert found["clip"].tokenizer == TOKENIZER
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert sorted(name for name in index if not name.startswith("_")) == COMPONENTS


def test_the_original_files_come_back_bit_for_bit(tmp_path: Path) -> None:
    stages = karlo()
    names = export_karlo_original(stages, tmp_path / "out")
    assert names == [PRIOR_FILE, STATISTICS_FILE, DECODER_FILE, UPSAMPLER_FILE]
    export_karlo_folder({"clip": stages["clip"]}, tmp_path / "clip")
    given = Hyperparameters(2, HeadOptions(head_channels=4, groups=2), 8)
    clip, vocabulary = (tmp_path / "clip" / part for part in ("text_encoder", "tokenizer"))
    model = open_original_files(tmp_path / "out", clip, given=given, tokenizer=vocabulary)
    found = model.load()
    # How wide heads are means nothing to a network without attention, and is not in such files.
    for name in ("upsampler_256", "upsampler_256_last"):
        recipe: Any = stages[name].recipe
        unet = replace(recipe.model.unet, head_channels=4)
        recipe = replace(recipe, model=replace(recipe.model, unet=unet))
        stages[name] = replace(stages[name], recipe=recipe)
    assert_same_stages(found, stages)


def test_torch_reads_the_original_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    stages = karlo()
    export_karlo_original(stages, tmp_path / "out")
    state = torch.load(tmp_path / "out" / PRIOR_FILE, weights_only=True)["state_dict"]
    assert state["model.prd_emb"].shape == (1, 1, 20)
    assert state["model.transformer.resblocks.1.attn.c_qkv.weight"].shape == (60, 20)
    statistics: Any = stages["prior"].statistics
    mean, deviation = torch.load(tmp_path / "out" / STATISTICS_FILE, weights_only=True)
    np.testing.assert_array_equal(mean.numpy(), statistics.mean)
    np.testing.assert_array_equal(deviation.numpy(), statistics.deviation)
    state = torch.load(tmp_path / "out" / DECODER_FILE, weights_only=True)["state_dict"]
    assert state["model.cf_param"].shape == (WIDTH,)


def test_an_upsampler_without_a_last_network_is_both(tmp_path: Path) -> None:
    stage = random_stage(UPSAMPLER)
    assert export_karlo_original({"upsampler_256": stage}, tmp_path) == [UPSAMPLER_FILE]
    tensors = open_file(tmp_path / UPSAMPLER_FILE).tensors
    first, last = (
        tensors[f"state_dict.model_{part}.out.2.weight"].read()
        for part in ("first_steps", "last_step")
    )
    np.testing.assert_array_equal(first, last)


def test_statistics_stay_float32_in_a_folder_of_bfloat16(tmp_path: Path) -> None:
    stages = {"prior": random_stage(PRIOR), "decoder": random_stage(DECODER)}
    export_karlo_folder(stages, tmp_path, "bfloat16")
    tensors = open_file(tmp_path / "prior").tensors
    statistics: Any = stages["prior"].statistics
    np.testing.assert_array_equal(tensors["clip_mean"].read()[0], statistics.mean)
    np.testing.assert_array_equal(tensors["clip_std"].read()[0], statistics.deviation)
    assert tensors["proj_in.weight"].dtype == ml_dtypes.bfloat16
    decoder = open_file(tmp_path / "decoder").tensors
    assert {tensor.dtype for tensor in decoder.values()} == {np.dtype(ml_dtypes.bfloat16)}


def load(kind: Any, folder: Path) -> Any:
    """A component that loads without a name missing or left over."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys"))
    return model.eval()


def test_clip_is_two_encoders_for_transformers(tmp_path: Path) -> None:
    transformers = live("transformers")
    torch = live("torch")
    stage = clip_stage()
    assert set(export_karlo_folder({"clip": stage}, tmp_path)) == {
        "text_encoder",
        "image_encoder",
        "tokenizer",
        "feature_extractor",
    }
    tokens = TOKENIZER(["a red apple", "two hearts", ""])
    images = np.random.default_rng(0).uniform(-1, 1, (3, 14, 14, 3)).astype(np.float32)
    ours = outputs(CLIP_MODEL, stage.params, images, tokens)
    with torch.no_grad():
        text = load(transformers.CLIPTextModelWithProjection, tmp_path / "text_encoder")
        out = text(torch.from_numpy(tokens.astype(np.int64)))
        vision = load(transformers.CLIPVisionModelWithProjection, tmp_path / "image_encoder")
        picture = vision(normalised(CLIP_MODEL, images)).image_embeds
    assert error(ours["text"], out.text_embeds) < 1e-5
    assert error(ours["states"], out.last_hidden_state) < 1e-5
    assert error(ours["image"], picture) < 1e-5
    ids = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")("a red apple")
    np.testing.assert_array_equal(ids["input_ids"], tokens[0, : len(ids["input_ids"])])
    assert (tmp_path / "feature_extractor" / "preprocessor_config.json").is_file()


OWN_PRIORS = {
    "whitened": PRIOR.model,
    "scaled": replace(PRIOR.model, embedding_scale=None, is_whitened=False),
    "scaled by 3": replace(PRIOR.model, embedding_scale=3.0, is_whitened=False),
}


@pytest.mark.parametrize("name", OWN_PRIORS)
def test_diffusers_computes_the_prior(name: str, tmp_path: Path) -> None:
    diffusers = live("diffusers")
    import torch

    model = OWN_PRIORS[name]
    stage = random_stage(replace(PRIOR, model=model))
    export_karlo_folder({"prior": stage}, tmp_path)
    rng = np.random.default_rng(1)
    x, text = rng.standard_normal((2, 3, WIDTH)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    states = rng.standard_normal((3, CONTEXT, WIDTH)).astype(np.float32)
    mask = np.arange(CONTEXT) < np.array([[2], [5], [CONTEXT]])
    times = np.array([3, 500, 999])
    found = run(
        lambda p: DiffusionPrior(model).apply(
            {"params": p}, x, jnp.asarray(times), text, states, mask
        ),
        stage.params,
    )
    with torch.no_grad():
        prior = load(diffusers.PriorTransformer, tmp_path / "prior")
        arrays = [torch.from_numpy(array) for array in (x, times, text, states, mask)]
        expected = prior(*arrays).predicted_image_embedding
        embedding = prior.post_process_latents(torch.from_numpy(x)).numpy()
    assert error(found, expected) < 1e-5
    if model.is_whitened:
        statistics: Any = stage.statistics
        assert error(x * statistics.deviation + statistics.mean, embedding) < 1e-6
    else:
        assert error(x / model.scale, embedding) < 1e-6


def changed_unet(**changes: Any) -> DecoderConfig:
    return replace(DECODER.model, unet=replace(DECODER.model.unet, **changes))


OWN_DECODERS = {
    "karlo": DECODER.model,
    "zero null, scaled": replace(DECODER.model, null_embedding="zero", embedding_scale=None),
    "learned null, scaled": replace(DECODER.model, embedding_scale=3.0),
    "two heads": changed_unet(heads=2, attention_resolutions=(4,)),
    "levels": changed_unet(
        channel_mult=(1, 2, 3), depth=(1, 2, 1), attention_resolutions=(4,), dropout=0.1
    ),
}


@pytest.mark.parametrize("name", OWN_DECODERS)
def test_diffusers_computes_the_decoder(name: str, tmp_path: Path) -> None:
    diffusers = live("diffusers")
    import torch
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    model = OWN_DECODERS[name]
    stage = random_stage(replace(DECODER, model=model))
    export_karlo_folder({"decoder": stage}, tmp_path)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    embedding, text = rng.standard_normal((2, 2, WIDTH)).astype(np.float32)
    states = rng.standard_normal((2, CONTEXT, WIDTH)).astype(np.float32)
    mask = np.arange(CONTEXT) < np.array([[2], [5]])
    has, times = np.array([False, True]), np.array([3, 700])
    tokens = np.zeros((2, CONTEXT), np.int32)
    given = (x, times, embedding, has, tokens, mask, text, states)
    found = run(lambda p: Decoder(model).apply({"params": p}, *given), stage.params)
    with torch.no_grad():
        project = load(UnCLIPTextProjModel, tmp_path / "text_proj")
        context, time = project(
            image_embeddings=torch.from_numpy(embedding[1:]),
            prompt_embeds=torch.from_numpy(text),
            text_encoder_hidden_states=torch.from_numpy(states),
            do_classifier_free_guidance=True,
        )
        unet = load(diffusers.UNet2DConditionModel, tmp_path / "decoder")
        padded = torch.nn.functional.pad(torch.from_numpy(mask), (3, 0), value=True)
        expected = unet(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            torch.from_numpy(times),
            encoder_hidden_states=context,
            class_labels=time,
            attention_mask=padded,
        ).sample.numpy()
    assert error(found, expected.transpose(0, 2, 3, 1)) < 1e-5


OWN_UPSAMPLERS = {
    "karlo": UPSAMPLER,
    "ours": replace(
        UPSAMPLER,
        model=UpsamplerConfig(
            replace(
                UPSAMPLER.model.unet,
                out_channels=6,
                channel_mult=(1, 2, 3),
                depth=(2,),
                time_norm="scale_shift",
                dropout=0.1,
            ),
            resize="linear",
        ),
        diffusion=DiffusionConfig(variance="learned_range"),
    ),
}


@pytest.mark.parametrize("name", OWN_UPSAMPLERS)
def test_diffusers_computes_the_upsampler(name: str, tmp_path: Path) -> None:
    diffusers = live("diffusers")
    import torch

    recipe = OWN_UPSAMPLERS[name]
    stage = random_stage(recipe)
    names = export_karlo_folder({"upsampler_256": stage}, tmp_path)
    assert names == ["super_res_first", "super_res_scheduler"]
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 6)).astype(np.float32)
    times = np.array([0, 999])
    unet = recipe.model.unet
    found = run(lambda p: UNet(unet).apply({"params": p}, x, times), stage.params["unet"])
    with torch.no_grad():
        network = load(diffusers.UNet2DModel, tmp_path / "super_res_first")
        picture = torch.from_numpy(x.transpose(0, 3, 1, 2))
        expected = network(picture, torch.from_numpy(times)).sample.numpy()
    assert error(found, expected.transpose(0, 2, 3, 1)) < 1e-5


def test_the_schedulers_are_diffusers_own(tmp_path: Path) -> None:
    diffusers = live("diffusers")

    stages = {**karlo(), "prior": random_stage(replace(PRIOR, model=OWN_PRIORS["scaled"]))}
    export_karlo_folder(stages, tmp_path)
    found = {
        name: dict(diffusers.UnCLIPScheduler.from_pretrained(tmp_path / f"{name}_scheduler").config)
        for name in ("prior", "decoder", "super_res")
    }
    fields = ("prediction_type", "variance_type", "clip_sample", "clip_sample_range")
    assert {name: tuple(config[f] for f in fields) for name, config in found.items()} == {
        "prior": ("sample", "fixed_small_log", False, 1.0),
        "decoder": ("epsilon", "learned_range", True, 1.0),
        "super_res": ("epsilon", "fixed_small_log", True, 1.0),
    }


def decoder_with(**changes: Any) -> Any:
    return replace(DECODER, model=replace(DECODER.model, **changes))


def upsampler_with(**changes: Any) -> Any:
    unet = replace(UPSAMPLER.model.unet, **changes)
    return replace(UPSAMPLER, model=replace(UPSAMPLER.model, unet=unet))


REFUSED = {
    "mlp_width is 7": ("prior", replace(PRIOR, model=replace(
        PRIOR.model, transformer=replace(PRIOR.model.transformer, mlp_width=7)))),
    "activation is quick_gelu": ("prior", replace(PRIOR, model=replace(
        PRIOR.model, transformer=replace(PRIOR.model.transformer, activation="quick_gelu")))),
    "norm_epsilon is 0.001": ("prior", replace(PRIOR, model=replace(
        PRIOR.model, transformer=replace(PRIOR.model.transformer, norm_epsilon=1e-3)))),
    "text_width is 9": ("prior", replace(PRIOR, model=replace(PRIOR.model, text_width=9))),
    "prediction is v": ("prior", replace(
        PRIOR, diffusion=replace(PRIOR.diffusion, prediction="v"))),
    "variance is fixed_large": ("prior", replace(
        PRIOR, diffusion=replace(PRIOR.diffusion, variance="fixed_large"))),
    "schedule is linear": ("decoder", replace(
        DECODER, diffusion=replace(DECODER.diffusion, schedule="linear"))),
    "zero_terminal_snr is True": ("prior", replace(
        PRIOR, diffusion=replace(PRIOR.diffusion, zero_terminal_snr=True))),
    "a text encoder of its own": ("decoder", decoder_with(
        text=TextConfig(530, CONTEXT, TransformerConfig(10, 1, 2)))),
    "heads is 2, which are": (
        "decoder",
        decoder_with(
            unet=replace(DECODER.model.unet, heads=2, attention_resolutions=(8, 4))
        ),
    ),
    "masks_padding is False": ("decoder", decoder_with(masks_padding=False)),
    "clip_text_width is 9": ("decoder", decoder_with(clip_text_width=9)),
    "patch_size is 2": ("decoder", decoder_with(
        unet=replace(DECODER.model.unet, patch_size=2))),
    "has_middle_attention is False": ("decoder", decoder_with(
        unet=replace(DECODER.model.unet, has_middle_attention=False))),
    "the timestep has 16 sinusoids": ("decoder", decoder_with(
        unet=replace(DECODER.model.unet, time_channels=16))),
    "has_augmentation is True": ("upsampler_256", replace(
        UPSAMPLER, model=replace(UPSAMPLER.model, has_augmentation=True))),
    r"depth is \(1, 2\)": ("upsampler_256", upsampler_with(depth=(1, 2))),
    "has no place in Karlo's layout": ("linear_prior", LinearPriorRecipe()),
    r"prior \(DecoderRecipe\)": ("prior", DECODER),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_diffusers_would_compute_otherwise_is_refused(message: str, tmp_path: Path) -> None:
    name, recipe = REFUSED[message]
    stage = Stage(recipe, {}, TOKENIZER, 0, "")  # the check comes before the weights
    with pytest.raises(UserError, match=message) as caught:
        export_karlo_folder({name: stage}, tmp_path / "out")
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["masks_padding is False", "mlp_width is 7", "patch_size is 2"])
def test_what_karlo_would_compute_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    stage, recipe = REFUSED[name]
    with pytest.raises(UserError, match=name):
        export_karlo_original({stage: Stage(recipe, {}, TOKENIZER, 0, "")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_and_stages_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    last = {"upsampler_256_last": random_stage(UPSAMPLER)}
    for export in (export_karlo_folder, export_karlo_original):
        with pytest.raises(UserError, match="give upsampler_256 with it"):
            export(last, tmp_path / "out")
        other = {"upsampler_256": Stage(upsampler_with(channels=8), {}, None, 0, "")}
        with pytest.raises(UserError, match="another network than upsampler_256"):
            export(other | last, tmp_path / "out")
        with pytest.raises(UserError, match="name at least one"):
            export({}, tmp_path / "out")
    (tmp_path / "notes.txt").write_text("mine")
    for export in (export_karlo_folder, export_karlo_original):
        with pytest.raises(UserError, match="is not empty"):
            export({"prior": random_stage(PRIOR)}, tmp_path)
    uneven = clip_stage(norm_epsilon=1e-3)
    with pytest.raises(UserError, match="norm_epsilon"):
        export_karlo_folder({"clip": uneven}, tmp_path / "clip")
