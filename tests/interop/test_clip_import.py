"""CLIPs of others, imported: frozen ones always, live transformers and OpenCLIP where installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.interop.clip_models import (
    assert_close,
    hf_from_openai,
    inputs,
    is_close,
    live,
    normalised,
    outputs,
    save_arrays,
    shake,
    state_arrays,
)
from unclip_jax.data.tokenizer import clip_tokenizer, train_bpe
from unclip_jax.errors import UserError
from unclip_jax.interop.clip import abstract_params, find_clip, import_clip
from unclip_jax.interop.clip_state_dict import PRESETS, StateDictOptions
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.tokenizer_files import read_tokenizer, write_tokenizer
from unclip_jax.interop.transfer import export_tensors, import_params
from unclip_jax.models.clip import CLIP as CLIPModule
from unclip_jax.models.clip import OPENAI_MEAN, OPENAI_STD, CLIPConfig
from unclip_jax.models.transformer import TransformerConfig

HEADS = StateDictOptions(vision_heads=4, text_heads=6, activation="quick_gelu")
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "max_position_embeddings": 20,
    "vocab_size": 1000,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "image_size": 32,
    "patch_size": 8,
}
HF = {"model_type": "clip", "projection_dim": 40, "text_config": TEXT, "vision_config": VISION}
OPEN_CLIP = {
    "embed_dim": 40,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 1000, "width": 48, "heads": 6, "layers": 3},
}


@pytest.fixture(scope="module")
def frozen() -> dict[str, dict[str, np.ndarray]]:
    """A tiny CLIP with quick GELU: OpenAI's weights, inputs, and what OpenAI's code computes."""
    with np.load(Path(__file__).parents[1] / "golden" / "parity_clip.npz") as file:
        arrays = dict(file)
    return {
        part: {
            name.removeprefix(f"{part}/"): array
            for name, array in arrays.items()
            if name.startswith(f"{part}/")
        }
        for part in ("w", "in", "out")
    }


@pytest.fixture(scope="module")
def hf_weights(frozen: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return hf_from_openai(frozen["w"])


def frozen_inputs(frozen: dict[str, dict[str, np.ndarray]]) -> tuple[Any, Any]:
    pixels = frozen["in"]["pixels"].transpose(0, 2, 3, 1)
    images = 2 * (pixels * np.array(OPENAI_STD) + np.array(OPENAI_MEAN)) - 1
    return np.asarray(images, np.float32), frozen["in"]["tokens"].astype(np.int32)


def expected_outputs(frozen: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    out = frozen["out"]
    return {"image": out["image"], "text": out["text"], "states": out["text_states"]}


def hf_folder(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_arrays(weights, folder / "model.safetensors")
    return folder


def open_clip_folder(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_arrays(weights, folder / "open_clip_model.safetensors")
    return folder


def assert_same_weights(path: Path, weights: dict[str, np.ndarray], **given: Any) -> None:
    """Import and export give back every tensor, bit for bit."""
    found = find_clip(path, **given)
    back = export_tensors(found.key_map, found.load())
    assert set(back) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name].read().reshape(array.shape), array)


# --- frozen -----------------------------------------------------------------------------------


def test_state_dict(frozen: dict[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path = save_arrays(frozen["w"], tmp_path / "clip.safetensors")
    clip = import_clip(path, options=HEADS)
    assert_close(
        outputs(clip.config, clip.params, *frozen_inputs(frozen)), expected_outputs(frozen)
    )
    assert clip.params["logit_scale"] == frozen["w"]["logit_scale"]
    assert clip.tokenizer is None  # 1000 ids are not CLIP's
    assert_same_weights(path, frozen["w"], options=HEADS)


@pytest.mark.parametrize("prefix", ["module.", "state_dict.", "state_dict.module."])
def test_training_checkpoint(
    frozen: dict[str, dict[str, np.ndarray]], prefix: str, tmp_path: Path
) -> None:
    weights = {f"{prefix}{name}": array for name, array in frozen["w"].items()}
    weights[f"{prefix}attn_mask"] = np.zeros((20, 20), np.float32)
    clip = import_clip(save_arrays(weights, tmp_path / "a.safetensors"), options=HEADS)
    np.testing.assert_array_equal(
        clip.params["text"]["positional_embedding"], frozen["w"]["positional_embedding"]
    )


def test_openclip_folder(frozen: dict[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path = open_clip_folder(tmp_path, OPEN_CLIP, frozen["w"])
    clip = import_clip(path)
    assert_close(
        outputs(clip.config, clip.params, *frozen_inputs(frozen)), expected_outputs(frozen)
    )
    assert_same_weights(path, frozen["w"])


def test_huggingface_folder(
    frozen: dict[str, dict[str, np.ndarray]], hf_weights: dict[str, Any], tmp_path: Path
) -> None:
    path = hf_folder(tmp_path, HF, hf_weights)
    clip = import_clip(path)
    assert clip.config == import_clip_config(frozen, tmp_path)
    assert_close(
        outputs(clip.config, clip.params, *frozen_inputs(frozen)), expected_outputs(frozen)
    )
    assert_same_weights(path, hf_weights)


def import_clip_config(frozen: dict[str, dict[str, np.ndarray]], folder: Path) -> CLIPConfig:
    path = save_arrays(frozen["w"], folder / "openai.safetensors")
    return find_clip(path, options=HEADS).config


def test_huggingface_folder_in_shards_and_older(hf_weights: dict[str, Any], tmp_path: Path) -> None:
    """Shards, buffers of positions, and the config twice, of which `*_config_dict` counts."""
    parts = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, array) in enumerate(hf_weights.items()):
        parts["ab"[number % 2] + ".safetensors"][name] = array
    parts["a.safetensors"]["text_model.embeddings.position_ids"] = np.arange(20)[None]
    parts["b.safetensors"]["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    for file, arrays in parts.items():
        save_arrays(arrays, tmp_path / file)
    weight_map = {name: file for file, arrays in parts.items() for name in arrays}
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    wrong = TEXT | {"num_attention_heads": 12, "hidden_act": "gelu"}
    config = HF | {"text_config": wrong, "text_config_dict": TEXT, "vision_config_dict": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = import_clip(tmp_path)
    assert (clip.config.text.heads, clip.config.text.activation) == (6, "quick_gelu")
    np.testing.assert_array_equal(
        clip.params["vision"]["class_embedding"],
        hf_weights["vision_model.embeddings.class_embedding"],
    )


def test_karlos_text_encoder(golden: Path, tmp_path: Path) -> None:
    """A text encoder alone, with CLIP's own vocabulary, against diffusers' run of it."""
    with np.load(golden / "clip_towers.npz") as file:
        arrays = dict(file)
    weights = {n.removeprefix("w/"): x for n, x in arrays.items() if n.startswith("w/")}
    table = np.zeros((49408, arrays["rows"].shape[1]), np.float32)
    table[arrays["used"]] = arrays["rows"]
    weights["text_model.embeddings.token_embedding.weight"] = table
    path = hf_folder(tmp_path, json.loads(str(arrays["text_config"])), weights)
    clip = import_clip(path)
    assert clip.config.vision is None and clip.config.end_of_text is None
    assert clip.tokenizer == clip_tokenizer()
    found = outputs(clip.config, clip.params, None, arrays["input_ids"].astype(np.int32))
    assert_close(found, {"text": arrays["text_embeds"], "states": arrays["last_hidden_state"]})
    found = find_clip(path)
    back = export_tensors(found.key_map, found.load())
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name].read(), array)


def test_two_towers_are_one_clip(
    frozen: dict[str, dict[str, np.ndarray]], hf_weights: dict[str, Any], tmp_path: Path
) -> None:
    text, vision = (
        {n: x for n, x in hf_weights.items() if n.startswith(start)} for start in ("text", "vis")
    )
    text_path = hf_folder(
        tmp_path / "text", TEXT | {"projection_dim": 40, "model_type": "clip_text_model"}, text
    )
    vision_config = VISION | {"projection_dim": 40, "model_type": "clip_vision_model"}
    vision_path = hf_folder(tmp_path / "vision", vision_config, vision)
    clip = import_clip(text_path, image_encoder=vision_path)
    assert_close(
        outputs(clip.config, clip.params, *frozen_inputs(frozen)), expected_outputs(frozen)
    )
    with pytest.raises(UserError, match="image encoder alone"):
        import_clip(vision_path)
    with pytest.raises(UserError, match="is not CLIP's image encoder"):
        import_clip(text_path, image_encoder=text_path)
    hf_folder(tmp_path / "vision", vision_config | {"projection_dim": 41}, vision)
    with pytest.raises(UserError, match="width 40 and the image embedding 41"):
        import_clip(text_path, image_encoder=vision_path)


def test_every_tensor_matters(
    frozen: dict[str, dict[str, np.ndarray]], hf_weights: dict[str, Any], tmp_path: Path
) -> None:
    """Changing one tensor of the file changes the parameters and what they compute."""
    found = find_clip(hf_folder(tmp_path, HF, hf_weights))
    abstract = abstract_params(found.config)

    def load(weights: dict[str, np.ndarray]) -> Any:
        return import_params(found.key_map, from_arrays(weights), abstract, what="test")

    params = load(hf_weights)
    before = outputs(found.config, params, *frozen_inputs(frozen))
    rng = np.random.default_rng(0)
    for name, array in hf_weights.items():
        noise = rng.standard_normal(array.shape).astype(np.float32)
        changed = load(hf_weights | {name: array + noise})
        differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, changed)
        assert sum(jax.tree.leaves(differs)) == 1, name
        # A softmax does not see what is added to all keys; the temperature is not in embeddings.
        if not name.endswith("k_proj.bias") and name != "logit_scale":
            after = outputs(found.config, changed, *frozen_inputs(frozen))
            assert not is_close(after, before), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing of .*text_model.encoder.layers.1.mlp.fc1"),
        ("surplus", r"1 surplus of .*text_model.encoder.layers.3"),
        ("misspelt", r"1 missing, 1 surplus"),
        ("misshapen", r"1 misshapen .*visual_projection.weight has shape \(41, 64\)"),
    ],
)
def test_weights_that_do_not_fit(
    change: str, message: str, hf_weights: dict[str, Any], tmp_path: Path
) -> None:
    weights, name = dict(hf_weights), "text_model.encoder.layers.1.mlp.fc1.weight"
    if change in ("missing", "misspelt"):
        array = weights.pop(name)
        if change == "misspelt":
            weights[name.replace("fc1", "fc_1")] = array
    elif change == "surplus":
        weights["text_model.encoder.layers.3.layer_norm1.weight"] = np.ones(48, np.float32)
    else:
        weights["visual_projection.weight"] = np.ones((41, 64), np.float32)
    with pytest.raises(UserError, match=message):
        import_clip(hf_folder(tmp_path, HF, weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "model_type 'siglip', not clip"),
        ({"text_config": TEXT | {"hidden_act": "gelu_new"}}, "hidden_act is 'gelu_new'"),
        ({"text_config": TEXT | {"hidden_size": "48"}}, "hidden_size is '48'"),
        ({"text_config": TEXT | {"num_attention_heads": 7}}, "not divisible by heads 7"),
        ({"text_config": [1]}, "not an object"),
        ({"text_config": TEXT | {"eos_token_id": [1, 2]}}, r"eos_token_id is \[1, 2\]"),
        ({"vision_config": VISION | {"image_size": [32, 16]}}, r"image_size is \[32, 16\]"),
        ({"vision_config": VISION | {"num_channels": 1}}, "num_channels is 1"),
        ({"vision_config": VISION | {"layer_norm_eps": "small"}}, "layer_norm_eps is 'small'"),
    ],
)
def test_configs_that_are_refused(
    change: dict[str, Any], message: str, hf_weights: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        import_clip(hf_folder(tmp_path, HF | change, hf_weights))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base"}, "timm"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "ResNet"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool is True"),
        ("vision_cfg", {"ls_init_value": 0.1}, "ls_init_value is 0.1"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type is 'avg'"),
        ("vision_cfg", {"norm_kwargs": {"elementwise_affine": False}}, "norm_kwargs"),
        ("text_cfg", {"hf_model_name": "roberta"}, "a text encoder of transformers"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask is True"),
        ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
        ("text_cfg", {"proj_type": "none"}, "proj_type is 'none'"),
    ],
)
def test_openclip_configs_that_are_refused(
    part: str,
    change: dict[str, Any],
    message: str,
    frozen: dict[str, dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    config = OPEN_CLIP | {part: OPEN_CLIP[part] | change}
    with pytest.raises(UserError, match=message):
        import_clip(open_clip_folder(tmp_path, config, frozen["w"]))


def test_a_bare_state_dict_is_not_guessed(
    frozen: dict[str, dict[str, np.ndarray]], hf_weights: dict[str, Any], tmp_path: Path
) -> None:
    path = save_arrays(frozen["w"], tmp_path / "clip.safetensors")
    for options in (StateDictOptions(), StateDictOptions(vision_heads=4, text_heads=6)):
        with pytest.raises(UserError, match=r"ViT-H-14.* or give --vision-heads, --text-heads and"):
            import_clip(path, options=options)
    with pytest.raises(UserError, match="misshapen"):
        import_clip(path, options=StateDictOptions(model="ViT-B-32"))
    with pytest.raises(UserError, match="not a CLIP that this package knows"):
        StateDictOptions(model="ViT-B-33")
    with pytest.raises(UserError, match="has its own heads"):
        StateDictOptions(model="ViT-B-32", text_heads=8)
    with pytest.raises(UserError, match=r"give the folder with its config.json"):
        import_clip(save_arrays(hf_weights, tmp_path / "hf.safetensors"), options=HEADS)
    resnet = frozen["w"] | {"visual.layer1.0.conv1.weight": np.ones(1, np.float32)}
    with pytest.raises(UserError, match="ResNet"):
        import_clip(save_arrays(resnet, tmp_path / "rn.safetensors"), options=HEADS)
    with pytest.raises(UserError, match="give no options"):
        import_clip(open_clip_folder(tmp_path / "a", OPEN_CLIP, frozen["w"]), options=HEADS)
    with pytest.raises(UserError, match="does not exist"):
        import_clip(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither config.json"):
        import_clip(tmp_path / "empty")


def test_an_openai_archive_tells_itself(tmp_path: Path) -> None:
    """Its three numbers are how it is known; heads are of 64 and the GELU is the quick one."""
    weights = openai_archive()
    clip = import_clip(save_arrays(weights, tmp_path / "a.safetensors"))
    c = clip.config
    assert (c.image_size, c.patch_size, c.vocab_size, c.context_length) == (14, 7, 30, 6)
    assert c.vision == TransformerConfig(128, 1, 2, activation="quick_gelu")
    assert c.text == TransformerConfig(64, 2, 1, activation="quick_gelu")
    kernel = clip.params["text"]["projection"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, weights["text_projection"].astype(np.float32))


def openai_archive() -> dict[str, np.ndarray]:
    """Tensors as in OpenAI's ViT archives, half precision and three numbers beside."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "visual.conv1.weight": (128, 3, 7, 7),
        "visual.class_embedding": (128,),
        "visual.positional_embedding": (5, 128),
        "visual.proj": (128, 10),
        "token_embedding.weight": (30, 64),
        "positional_embedding": (6, 64),
        "text_projection": (64, 10),
        "logit_scale": (),
    }
    for name, width in (("visual.ln_pre", 128), ("visual.ln_post", 128), ("ln_final", 64)):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for blocks, width, depth in (
        ("visual.transformer.resblocks", 128, 1),
        ("transformer.resblocks", 64, 2),
    ):
        for layer in range(depth):
            block = f"{blocks}.{layer}"
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width)}
            shapes |= {f"{block}.attn.in_proj_bias": (3 * width,)}
            for name, rows, columns in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                shapes |= {
                    f"{block}.{name}.weight": (rows, columns),
                    f"{block}.{name}.bias": (rows,),
                }
            for name in ("ln_1", "ln_2"):
                shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    weights = {
        name: np.asarray(rng.standard_normal(shape), np.float16) for name, shape in shapes.items()
    }
    numbers = {"input_resolution": 14, "context_length": 6, "vocab_size": 30}
    return weights | {name: np.asarray(n, np.int64) for name, n in numbers.items()}


def test_presets_have_the_published_counts() -> None:
    """By shapes alone. bigG's and g's MLPs are ratios that OpenCLIP rounds down."""
    counts = {
        "ViT-B-32": 151_277_313,
        "ViT-L-14": 427_616_513,
        "ViT-L-14-quickgelu": 427_616_513,
        "ViT-H-14": 986_109_441,
        "ViT-bigG-14": 2_539_567_105,
    }
    for name, expected in counts.items():
        leaves = jax.tree.leaves(abstract_params(PRESETS[name]))
        assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == expected, name
    assert PRESETS["ViT-B-32"].text.activation == "gelu"
    assert PRESETS["ViT-B-32-quickgelu"].text.activation == "quick_gelu"


# --- live -------------------------------------------------------------------------------------

HUGGINGFACE = [  # (embedding, text, vision); sizes, activations, epsilons and ends of text differ
    (
        24,
        {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 80, "eos_token_id": 2}
        | {"num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
        {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 192}
        | {"num_hidden_layers": 1, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ),
    (
        40,
        {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 96, "eos_token_id": 30}
        | {"num_hidden_layers": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-2},
        {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 100}
        | {"num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
    ),
    (
        16,  # an end of text that no row holds: theirs reads the first position
        {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 64}
        | {"num_hidden_layers": 1, "eos_token_id": 49407},
        {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
        | {"num_hidden_layers": 4, "layer_norm_eps": 1e-1},
    ),
]


@pytest.mark.parametrize("case", range(len(HUGGINGFACE)))
def test_transformers_clip(case: int, tmp_path: Path) -> None:
    transformers, torch = live("transformers"), pytest.importorskip("torch")
    width, own_text, own_vision = HUGGINGFACE[case]
    config = transformers.CLIPConfig(
        text_config=own_text
        | {"vocab_size": 60, "max_position_embeddings": 9 + case, "bos_token_id": 1},
        vision_config=own_vision | {"image_size": 24, "patch_size": (4, 8, 6)[case]},
        projection_dim=width,
    )
    model = shake(transformers.CLIPModel(config), case)
    model.save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    processor.save_pretrained(tmp_path)
    clip = import_clip(tmp_path)
    assert clip.config.image_mean == (0.1, 0.2, 0.3)
    images, tokens = inputs(clip.config, case, end_of_text=30 if case == 1 else None)
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        vision = model.vision_model(pixel_values=normalised(clip.config, images))
        text = model.text_model(input_ids=ids)
        image = model.visual_projection(vision.pooler_output)
        text_embedding = model.text_projection(text.pooler_output)
    expected = {"image": image, "text": text_embedding, "states": text.last_hidden_state}
    assert_close(outputs(clip.config, clip.params, images, tokens), expected)
    assert_same_weights(tmp_path, state_arrays(model))


def test_transformers_text_encoders(tmp_path: Path) -> None:
    """With its projection, without it, and in the old layout of the latter."""
    transformers, torch = live("transformers"), pytest.importorskip("torch")
    config = transformers.CLIPTextConfig(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=9,
        projection_dim=16,
        eos_token_id=59,
        bos_token_id=1,
    )
    projected = shake(transformers.CLIPTextModelWithProjection(config), 0)
    bare = shake(transformers.CLIPTextModel(config), 1)
    for name, model in (("projected", projected), ("bare", bare)):
        model.save_pretrained(tmp_path / name)
        clip = import_clip(tmp_path / name)
        _, tokens = inputs(clip.config, 3)
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(tokens.astype(np.int64)))
        text = out.text_embeds if name == "projected" else out.pooler_output
        found = outputs(clip.config, clip.params, None, tokens)
        assert_close(found, {"text": text, "states": out.last_hidden_state})
    old = {f"text_model.{name}": array for name, array in state_arrays(bare).items()}
    hf_folder(tmp_path / "bare", json.loads((tmp_path / "bare" / "config.json").read_text()), old)
    again = import_clip(tmp_path / "bare")
    assert_close(outputs(again.config, again.params, None, tokens), {"text": text})


OPENCLIP = [
    {  # heads of 80, an MLP of 4.9231 times the width, as H and bigG have them, but small
        "quick_gelu": False,
        "vision_cfg": {"layers": 2, "width": 52, "head_width": 13, "mlp_ratio": 4.9231},
        "text_cfg": {"layers": 1, "width": 40, "heads": 4},
    },
    {
        "quick_gelu": True,
        "init_logit_bias": -7.0,
        "vision_cfg": {"layers": 1, "width": 80, "head_width": 80, "norm_kwargs": {"eps": 1e-2}},
        "text_cfg": {"layers": 2, "width": 24, "heads": 3, "mlp_ratio": 2.5}
        | {"pool_type": "eos", "eos_id": 30},
    },
]


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("case", range(len(OPENCLIP)))
def test_openclip(case: int, custom_text: bool, tmp_path: Path) -> None:
    live("open_clip")
    torch = pytest.importorskip("torch")
    from open_clip.model import CLIP, CustomTextCLIP

    config = json.loads(json.dumps(OPENCLIP[case])) | {"embed_dim": 20}
    config["vision_cfg"] |= {"image_size": 24, "patch_size": 8}
    config["text_cfg"] |= {"context_length": 9, "vocab_size": 60}
    model = shake((CustomTextCLIP if custom_text else CLIP)(**config), case)
    weights = state_arrays(model)
    clip = import_clip(open_clip_folder(tmp_path, config | {"custom_text": custom_text}, weights))
    images, tokens = inputs(clip.config, case, end_of_text=30 if case == 1 else None)
    with torch.no_grad():
        image = model.encode_image(normalised(clip.config, images))
        text = model.encode_text(torch.from_numpy(tokens.astype(np.int64)))
        logits = model.get_logits(
            normalised(clip.config, images), torch.from_numpy(tokens.astype(np.int64))
        )[0]
    found = outputs(clip.config, clip.params, images, tokens)
    assert_close(found, {"image": image, "text": text})
    assert_same_weights(tmp_path, weights)
    with jax.default_matmul_precision("highest"):
        out = CLIPModule(clip.config).apply({"params": clip.params}, images, tokens)
    ours = out["logit_scale"] * out["image"] @ out["text"].T + out["logit_bias"]
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)
    # The state dict alone gives the same, once heads and activation are named.
    if case == 0:
        path = save_arrays(weights, tmp_path / "weights.safetensors")
        options = StateDictOptions(vision_heads=4, text_heads=4, activation="gelu")
        again = import_clip(path, options=options)
        assert again.config == clip.config
        wrong = import_clip(path, options=StateDictOptions(None, 4, 4, "quick_gelu"))
        assert not is_close(outputs(wrong.config, wrong.params, images, tokens), {"image": image})


def test_torchscript_archive(tmp_path: Path) -> None:
    """OpenAI's files are TorchScript: nested modules whose tensors are half precision."""
    torch = pytest.importorskip("torch")
    weights = openai_archive()

    class Holder(torch.nn.Module):
        pass

    root = Holder()
    for name, array in weights.items():
        module, tensor = root, torch.from_numpy(array)
        *path, leaf = name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, Holder())
            module = dict(module.named_children())[part]
        if tensor.is_floating_point():
            module.register_parameter(leaf, torch.nn.Parameter(tensor))
        else:
            module.register_buffer(leaf, tensor)
    torch.jit.save(torch.jit.script(root), tmp_path / "ViT-tiny.pt")
    clip = import_clip(tmp_path / "ViT-tiny.pt")
    same = import_clip(save_arrays(weights, tmp_path / "a.safetensors"))
    assert clip.config == same.config
    jax.tree.map(np.testing.assert_array_equal, clip.params, same.params)


# --- tokenizers -------------------------------------------------------------------------------


def test_clips_vocabulary_is_recognised(golden: Path, tmp_path: Path) -> None:
    write_tokenizer(clip_tokenizer(), tmp_path)
    tokenizer = read_tokenizer(tmp_path, 77)
    assert tokenizer.kind == "clip"
    for case in json.loads((golden / "tokenizer_cases.json").read_text()):
        expected = np.zeros(77, np.int32)
        expected[: len(case["ids"])] = case["ids"]
        np.testing.assert_array_equal(tokenizer([case["text"]])[0], expected)


def test_another_vocabulary_of_the_scheme(tmp_path: Path) -> None:
    own = train_bpe(["a red apple", "a green apple", "a red heart"] * 3, 530, 16)
    write_tokenizer(own, tmp_path)
    assert read_tokenizer(tmp_path, 16) == own
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat>": len(vocab)}))
    with pytest.raises(UserError, match=r"'<cat>' .1 in all.: tokens that were added"):
        read_tokenizer(tmp_path, 16)
    (tmp_path / "added_tokens.json").unlink()
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(UserError, match="another vocabulary than CLIP's scheme"):
        read_tokenizer(tmp_path, 16)
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(UserError, match="not an object"):
        read_tokenizer(tmp_path, 16)


def test_a_vocabulary_larger_than_the_model(hf_weights: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(clip_tokenizer(), tmp_path)
    with pytest.raises(UserError, match="vocabulary of 49408, the model one of 1000"):
        import_clip(hf_folder(tmp_path, HF, hf_weights))


def test_huggingfaces_own_tokenizer_file(tmp_path: Path) -> None:
    """tokenizer.json as transformers writes it; "!" as padding does not make it special here."""
    transformers = live("transformers")
    own = train_bpe(["a red apple", "a green apple", "a red heart!"] * 3, 530, 16)
    write_tokenizer(own, tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, pad_token="!")
    saved = tmp_path / "saved"
    theirs.save_pretrained(saved)
    assert {path.name for path in saved.iterdir()} >= {"tokenizer.json"}
    tokenizer = read_tokenizer(saved, 16)
    assert tokenizer == own
    data = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"normalizer": None}, "capital letters"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits words"),
        ({"model": data["model"] | {"end_of_word_suffix": None}}, "byte pairs"),
        ({"model": {"type": "WordPiece"}}, "byte pairs"),
    ):
        (saved / "tokenizer.json").write_text(json.dumps(data | change), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_tokenizer(saved, 16)
