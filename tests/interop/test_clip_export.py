"""Our CLIPs, exported: transformers, OpenCLIP and OpenAI's rules compute what we compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.interop.clip_models import (
    assert_close,
    inputs,
    live,
    normalised,
    outputs,
    random_params,
)
from unclip_jax.data.tokenizer import Tokenizer, TokenizerConfig, clip_tokenizer, train_bpe
from unclip_jax.errors import UserError
from unclip_jax.interop.clip import import_clip
from unclip_jax.interop.clip_export import (
    export_hf_clip,
    export_open_clip,
    export_open_clip_state,
    export_openai_state,
    open_clip_model_config,
)
from unclip_jax.interop.clip_state_dict import StateDictOptions
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_stage, save_stage, weights_id

CORPUS = ["a red apple", "a green apple, 3d style", "a red heart", "two green hearts"] * 3
TOKENIZER = train_bpe(CORPUS, 540, 12)
CONFIG = CLIPConfig(
    embedding_width=20,
    image_size=24,
    patch_size=8,
    vision=TransformerConfig(width=36, depth=2, heads=3, activation="quick_gelu", mlp_width=91),
    text=TransformerConfig(width=24, depth=1, heads=4, activation="quick_gelu"),
    vocab_size=560,  # rows that no merge was found for
    context_length=12,
    image_mean=(0.5, 0.4, 0.3),
    image_std=(0.2, 0.3, 0.4),
)
EPSILONS = replace(
    CONFIG,
    vision=replace(CONFIG.image_tower, activation="gelu", norm_epsilon=1e-3),
    text=replace(CONFIG.text, norm_epsilon=1e-2),
    norm_epsilon=1e-3,
    text_norm_epsilon=1e-2,
    end_of_text=40,
)
TEXT_ONLY = replace(CONFIG, vision=None)


def openai_config() -> CLIPConfig:
    tower = TransformerConfig(width=128, depth=1, heads=2, activation="quick_gelu")
    return replace(CONFIG, vision=tower, text=replace(tower, width=64, heads=1))


def assert_equal_trees(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("config", [CONFIG, EPSILONS, TEXT_ONLY], ids=["plain", "epsilons", "text"])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, None], ids=["vocabulary", "none"])
def test_a_huggingface_folder_comes_back(
    config: CLIPConfig, tokenizer: Tokenizer | None, tmp_path: Path
) -> None:
    params = random_params(config, 0)
    for _ in range(2):  # an export over an export is one
        export_hf_clip(config, params, tokenizer, tmp_path)
    clip = import_clip(tmp_path)
    end_of_text = config.end_of_text
    if tokenizer is not None and end_of_text is None:
        end_of_text = tokenizer.eot_id
    pictures = {} if config.vision else {"image_size": 224, "patch_size": 32}
    if config.vision is None:
        pictures |= {"image_mean": CLIPConfig.image_mean, "image_std": CLIPConfig.image_std}
        params = params | {"logit_scale": np.float32(config.initial_logit_scale)}
    assert clip.config == replace(config, end_of_text=end_of_text, **pictures)
    assert clip.tokenizer == tokenizer
    assert_equal_trees(clip.params, params)


@pytest.mark.parametrize("config", [CONFIG, EPSILONS], ids=["plain", "epsilons"])
def test_transformers_loads_it(config: CLIPConfig, tmp_path: Path) -> None:
    transformers, torch = live("transformers"), pytest.importorskip("torch")
    params = random_params(config, 1)
    export_hf_clip(config, params, TOKENIZER, tmp_path)
    model, info = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    images, _ = inputs(config, 0)
    tokens = TOKENIZER(["a red apple", "two hearts", "an apple, apple, apple, green, red, 3d"])
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            pixel_values=normalised(config, images),
        )
    found = CLIP(config).apply({"params": params}, images, tokens)
    assert_close(found, {"image": out.image_embeds, "text": out.text_embeds})
    logits = found["logit_scale"] * found["image"] @ found["text"].T
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), rtol=1e-4, atol=1e-5)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    picture = np.full((30, 40, 3), 255, np.uint8)
    pixels = processor(picture, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 24, 24)
    np.testing.assert_allclose(pixels[0, :, 0, 0], [0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.4], rtol=1e-5)


def test_transformers_loads_a_text_encoder(tmp_path: Path) -> None:
    transformers, torch = live("transformers"), pytest.importorskip("torch")
    params = random_params(TEXT_ONLY, 2)
    export_hf_clip(TEXT_ONLY, params, TOKENIZER, tmp_path)
    model, info = transformers.CLIPTextModelWithProjection.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens = TOKENIZER(["a red apple", "hearts", ""])
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(tokens.astype(np.int64)))
    found = outputs(TEXT_ONLY, params, None, tokens)
    assert_close(found, {"text": out.text_embeds, "states": out.last_hidden_state})


@pytest.mark.parametrize("tokenizer", [TOKENIZER, clip_tokenizer()], ids=["trained", "clip"])
def test_transformers_tokenizes_as_we_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = live("transformers")
    config = replace(TEXT_ONLY, vocab_size=tokenizer.vocab_size)
    config = replace(config, context_length=tokenizer.context_length)
    export_hf_clip(config, random_params(config, 0), tokenizer, tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a red Apple!!!", "", "it's 3d, café 🍎", "green " * 100]
    ids = theirs(texts, truncation=True)["input_ids"]
    for row, expected in zip(tokenizer(texts), ids, strict=True):
        assert row[: len(expected)].tolist() == expected
        assert not row[len(expected) :].any()
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.sot_id, tokenizer.eot_id)
    assert theirs.model_max_length == tokenizer.context_length


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(EPSILONS, text=replace(EPSILONS.text, activation="gelu"), has_logit_bias=True),
    ],
    ids=["quick_gelu", "gelu"],
)
def test_openclip_loads_it(config: CLIPConfig, tmp_path: Path) -> None:
    open_clip, torch = live("open_clip"), pytest.importorskip("torch")
    params = random_params(config, 3)
    state = {
        name: torch.from_numpy(np.array(tensor.read()))
        for name, tensor in export_open_clip_state(config, params).items()
    }
    model = open_clip.model.CLIP(**open_clip_model_config(config)).eval()
    model.load_state_dict(state, strict=True)
    images, tokens = inputs(config, 0, end_of_text=config.end_of_text)

    def theirs(model: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {
                "image": model.encode_image(normalised(config, images)),
                "text": model.encode_text(torch.from_numpy(tokens.astype(np.int64))),
            }

    assert_close(outputs(config, params, images, tokens), theirs(model))
    assert model.logit_bias is None or model.logit_bias.item() == float(params["logit_bias"])
    export_open_clip(config, params, tmp_path / "folder")
    found, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'folder'}")
    assert_close(outputs(config, params, images, tokens), theirs(found.eval()))
    assert tuple(preprocess.transforms[-1].mean) == config.image_mean


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_an_openclip_folder_comes_back(activation: Any, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        vision=replace(CONFIG.image_tower, activation=activation),
        text=replace(CONFIG.text, activation=activation, norm_epsilon=1e-3),
        text_norm_epsilon=1e-3,
        end_of_text=7,
        has_logit_bias=True,
        initial_logit_bias=-5.0,
    )
    params = random_params(config, 0)
    export_open_clip(config, params, tmp_path)
    clip = import_clip(tmp_path)
    assert clip.config == config
    assert_equal_trees(clip.params, params)


@pytest.mark.parametrize("hidden", range(1, 200, 7))
def test_openclip_finds_every_mlp_width(hidden: int) -> None:
    """It rounds width * ratio down."""
    config = replace(CONFIG, text=replace(CONFIG.text, mlp_width=hidden))
    ratio = open_clip_model_config(config)["text_cfg"]["mlp_ratio"]
    assert int(config.text.width * ratio) == hidden


def test_openais_code_loads_it() -> None:
    """OpenCLIP ships OpenAI's loader, which derives every size from the state dict."""
    live("open_clip")
    torch = pytest.importorskip("torch")
    from open_clip.model import build_model_from_openai_state_dict

    config = openai_config()
    # It keeps matrices in half precision.
    params = jax.tree.map(lambda x: np.float32(np.float16(x)), random_params(config, 4))
    state = {
        name: torch.from_numpy(np.array(tensor.read()))
        for name, tensor in export_openai_state(config, params).items()
    }
    model = build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float()
    images, tokens = inputs(config, 0)
    with torch.no_grad():
        expected = {
            "image": model.encode_image(normalised(config, images)),
            "text": model.encode_text(torch.from_numpy(tokens.astype(np.int64))),
        }
    assert_close(outputs(config, params, images, tokens), expected)


def test_an_openai_state_comes_back(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    config = openai_config()
    params = random_params(config, 4)
    arrays = {
        name: np.array(tensor.read())
        for name, tensor in export_openai_state(config, params).items()
    }
    save_file(arrays, tmp_path / "a.safetensors")
    clip = import_clip(tmp_path / "a.safetensors", options=StateDictOptions("openai"))
    # A state dict has no statistics of pictures.
    assert replace(clip.config, image_mean=CONFIG.image_mean, image_std=CONFIG.image_std) == config
    assert_equal_trees(clip.params, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": replace(openai_config().image_tower, activation="gelu")}, "activation gelu"),
        ({"text": replace(openai_config().text, heads=2)}, "heads 2, not of 64"),
        ({"text": replace(openai_config().text, mlp_width=255)}, "mlp_width 255"),
        (
            {
                "text": replace(openai_config().text, norm_epsilon=1e-6),
                "text_norm_epsilon": 1e-6,
            },
            "norm_epsilon 1e-06",
        ),
        ({"has_logit_bias": True}, "no logit_bias"),
        ({"end_of_text": 5}, "no end_of_text"),
        ({"vision": None}, "no image encoder"),
        ({"norm_epsilon": 1e-6}, "two .1e-05 in the blocks, 1e-06 around them"),
    ],
)
def test_what_openais_code_cannot_hold(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_openai_state(replace(openai_config(), **change), {})


def test_what_openclip_and_transformers_cannot_hold(tmp_path: Path) -> None:
    params = random_params(CONFIG, 0)
    with pytest.raises(UserError, match="one activation and this model two"):
        export_open_clip_state(EPSILONS, params)
    with pytest.raises(UserError, match="no image encoder"):
        export_open_clip(TEXT_ONLY, params, tmp_path / "a")
    with pytest.raises(UserError, match=r"two .1e-05 in the blocks, 0.1 around them"):
        export_hf_clip(replace(CONFIG, norm_epsilon=0.1), params, None, tmp_path / "a")
    biased = replace(CONFIG, has_logit_bias=True)
    params = random_params(biased, 0)
    with pytest.raises(UserError, match="set drop_logit_bias"):
        export_hf_clip(biased, params, None, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    export_hf_clip(biased, params, None, tmp_path / "a", drop_logit_bias=True)
    assert import_clip(tmp_path / "a").config == CONFIG
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files .notes.txt"):
        export_hf_clip(CONFIG, params, None, tmp_path / "a")


# --- a text encoder alone, in this package --------------------------------------------------------


def test_a_text_encoder_is_a_stage(tmp_path: Path) -> None:
    recipe = CLIPRecipe(
        model=replace(TEXT_ONLY, image_size=64, patch_size=32),
        tokenizer=TokenizerConfig("trained", TOKENIZER.vocab_size, 12),
    )
    params = init_params(recipe, jax.random.key(0))
    assert set(params) == {"text", "logit_scale"}
    stage = Stage(recipe, params, TOKENIZER, 3, weights_id(params))
    save_stage(stage, tmp_path, "float32")
    assert json.loads((tmp_path / "config.json").read_text())["recipe"]["model"]["vision"] is None
    again = load_stage(tmp_path)
    assert again.recipe == recipe
    assert_equal_trees(again.params, params)


def test_a_text_encoder_has_no_pictures() -> None:
    images, tokens = inputs(TEXT_ONLY, 0)
    clip, variables = CLIP(TEXT_ONLY), {"params": random_params(TEXT_ONLY, 0)}
    assert set(clip.apply(variables, None, tokens)) == {"text", "logit_scale", "logit_bias"}
    for call in (
        lambda: clip.apply(variables, images, method=CLIP.encode_image),
        lambda: clip.apply(variables, images, tokens),
    ):
        with pytest.raises(UserError, match="no image encoder"):
            call()
