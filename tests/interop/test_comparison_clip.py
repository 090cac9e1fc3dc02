"""`unclip compare clip` beside transformers, open_clip and a TorchScript, and from traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.interop.clip_models import (
    hf_from_openai,
    live,
    random_params,
    save_arrays,
    shake,
    state_arrays,
)
from unclip_jax.errors import UserError
from unclip_jax.interop.clip import find_clip
from unclip_jax.interop.clip_keys import openai_key_map
from unclip_jax.interop.comparison.clip import inputs, run_clip
from unclip_jax.interop.comparison.rows import Row, table
from unclip_jax.interop.comparison.trace import Trace, load_trace, save_trace
from unclip_jax.interop.tokenizer_files import write_tokenizer
from unclip_jax.interop.transfer import export_tensors
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.transformer import TransformerConfig

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 9,
    "vocab_size": 60,
    "eos_token_id": 2,
    "hidden_act": "gelu",
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_attention_heads": 3,
    "num_hidden_layers": 1,
    "image_size": 14,
    "patch_size": 7,
    "layer_norm_eps": 1e-4,
}
HF = {"model_type": "clip", "projection_dim": 12, "text_config": TEXT, "vision_config": VISION}
PROMPTS = ("a red apple", "two cats")


@pytest.fixture(scope="module", autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


def compare(path: Path, model: str | None = None, **given: Any) -> tuple[list[Row], list[str]]:
    options: dict[str, Any] = {"record": None, "trace": None, "seed": 0, **given}
    rows, notes, pictures = run_clip(path, PROMPTS, progress=lambda _: None, model=model, **options)
    assert pictures == []
    return rows, notes


def assert_all_pass(rows: list[Row], names: list[str]) -> None:
    assert [row.name for row in rows] == names
    assert all(row.passes for row in rows), table(rows)


def names(text: int, image: int) -> list[str]:
    towers = [f"image: block {i}" for i in range(image)] + ["image: embedding"] * bool(image)
    towers += [*(f"text: block {i}" for i in range(text)), "text: states", "text: embedding"]
    return towers + ["logits"] * bool(image)


def hf_model(folder: Path, **changes: Any) -> Path:
    transformers = live("transformers")
    text, vision = (HF[part] | changes.get(part, {}) for part in ("text_config", "vision_config"))
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    shake(transformers.CLIPModel(config), 0).save_pretrained(folder)
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("eos", [2, 31])
def test_a_clip_of_hugging_face(eos: int, tmp_path: Path) -> None:
    path = hf_model(tmp_path, text_config={"eos_token_id": eos})
    rows, notes = compare(path, record=tmp_path / "trace.npz")
    assert_all_pass(rows, names(2, 1))
    assert any("CLIPModel of transformers" in note for note in notes)
    again, notes = compare(path, trace=tmp_path / "trace.npz")
    assert again == rows
    assert any("tensors of the file are those of the trace, bit for bit" in note for note in notes)


@pytest.mark.torch
def test_one_changed_tensor_is_found(tmp_path: Path) -> None:
    """In the rows from there on, and by name."""
    torch = pytest.importorskip("torch")
    path = hf_model(tmp_path / "a")
    compare(path, record=tmp_path / "trace.npz")
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    weights[name] = weights[name] + 0.1 * torch.randn(weights[name].shape)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    rows, notes = compare(path, trace=tmp_path / "trace.npz")
    failed = [row.name for row in rows if not row.passes]
    outputs = ["text: block 1", "text: states", "text: embedding", "logits"]
    assert failed == [*outputs, f"weights of the file: {name}"]
    assert any("1 of" in note and name in note for note in notes)


@pytest.mark.torch
def test_a_change_that_no_output_shows_is_found_by_its_digest(tmp_path: Path) -> None:
    """A softmax does not see the bias of the keys."""
    pytest.importorskip("torch")
    path = hf_model(tmp_path / "a")
    compare(path, record=tmp_path / "trace.npz")
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    name = "text_model.encoder.layers.0.self_attn.k_proj.bias"
    weights[name] = weights[name] + 1e-3
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    rows, _ = compare(path, trace=tmp_path / "trace.npz")
    assert [row.name for row in rows if not row.passes] == [f"weights of the file: {name}"]


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["CLIPTextModelWithProjection", "CLIPTextModel"])
def test_a_text_encoder_alone(kind: str, tmp_path: Path) -> None:
    transformers = live("transformers")
    config = transformers.CLIPTextConfig(**TEXT, projection_dim=10)
    shake(getattr(transformers, kind)(config), 1).save_pretrained(tmp_path)
    rows, notes = compare(tmp_path)
    assert_all_pass(rows, names(2, 0))
    assert any(note.startswith(f"reference: {kind} of") for note in notes)


OPEN_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 14, "layers": 2, "width": 24, "head_width": 8, "patch_size": 7},
    "text_cfg": {"context_length": 9, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.torch
@pytest.mark.parametrize(
    "extra", [{"quick_gelu": True}, {"init_logit_bias": -5.0, "custom_text": True}]
)
def test_a_folder_of_openclip(extra: dict[str, Any], tmp_path: Path) -> None:
    open_clip = live("open_clip")
    options = {k: v for k, v in extra.items() if k != "custom_text"}
    kind = open_clip.model.CustomTextCLIP if "custom_text" in extra else open_clip.model.CLIP
    model = shake(kind(**OPEN_CLIP, **options), 2)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP | extra}))
    save_arrays(state_arrays(model), tmp_path / "open_clip_model.safetensors")
    rows, notes = compare(tmp_path)
    assert_all_pass(rows, names(1, 2))
    assert any("of open_clip_torch" in note for note in notes)


def openai_config() -> CLIPConfig:
    vision = TransformerConfig(128, 1, 2, activation="quick_gelu")
    return CLIPConfig(
        10, 14, 7, vision, TransformerConfig(64, 2, 1, activation="quick_gelu"), 60, 9
    )


def openai_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random ones under OpenAI's names."""
    config = openai_config()
    tensors = export_tensors(openai_key_map(config, ""), random_params(config, seed))
    return {name: np.asarray(tensor.read()) for name, tensor in tensors.items()}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # torch's own, of a format that OpenAI's files have
def test_an_openai_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TorchScript; by open_clip with its blocks, without it by itself."""
    torch, open_clip = pytest.importorskip("torch"), live("open_clip")
    weights = {name: torch.from_numpy(x.copy()) for name, x in openai_weights().items()}
    model = open_clip.model.build_model_from_openai_state_dict(dict(weights)).float()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    numbers = {"input_resolution": 14, "context_length": 9, "vocab_size": 60}
    del model.context_length, model.vocab_size
    for name, value in numbers.items():
        model.register_buffer(name, torch.tensor(value))
    examples = {
        "encode_image": torch.zeros(2, 3, 14, 14),
        "encode_text": torch.zeros(2, 9, dtype=torch.long),
    }
    script = torch.jit.trace_module(model, examples, check_trace=False)
    torch.jit.save(script, tmp_path / "ViT.pt")
    rows, notes = compare(tmp_path / "ViT.pt")
    assert_all_pass(rows, names(2, 1))
    assert any("open_clip_torch" in note for note in notes)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    rows, notes = compare(tmp_path / "ViT.pt")
    assert_all_pass(rows, ["image: embedding", "text: embedding", "logits"])
    assert "reference: the archive's TorchScript" in notes


def test_without_torch_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_arrays(openai_weights(), tmp_path / "clip.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"the reference cannot run here .* --trace") as caught:
        compare(path, "openai")
    assert "\n" not in str(caught.value)


def test_a_trace_needs_no_torch_and_belongs_to_one_clip(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen run of OpenAI's code as a trace; another CLIP's is refused."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with np.load(golden / "parity_clip.npz") as file:
        frozen = dict(file)
    weights = {name.removeprefix("w/"): x for name, x in frozen.items() if name.startswith("w/")}
    text = TEXT | {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 6}
    text |= {"num_hidden_layers": 3, "max_position_embeddings": 20, "vocab_size": 1000}
    text |= {"hidden_act": "quick_gelu"}
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    vision |= {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    config = {"text_config": text, "vision_config": vision, "projection_dim": 40}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    save_arrays(hf_from_openai(weights), tmp_path / "model.safetensors")
    found = find_clip(tmp_path)
    arrays = inputs(found, PROMPTS, 0)
    pixels = frozen["in/pixels"].transpose(0, 2, 3, 1)
    arrays |= {
        "text/tokens": frozen["in/tokens"].astype(np.int32),
        "image/pixels": 2 * (pixels * arrays["image/std"] + arrays["image/mean"]) - 1,
        "text/states": frozen["out/text_states"],
        "text/embedding": frozen["out/text"],
        "image/embedding": frozen["out/image"],
    }
    image, text_ = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (frozen["out/image"], frozen["out/text"])
    )
    arrays["logits"] = np.exp(weights["logit_scale"]) * image @ text_.T
    path = tmp_path / "trace.npz"
    save_trace(Trace("clip", {"reference": "OpenAI's code"}, arrays), path)
    rows, _ = compare(tmp_path, trace=path)
    assert_all_pass(rows, ["image: embedding", "text: states", "text: embedding", "logits"])

    other = save_arrays(openai_weights(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="the trace is of another CLIP"):
        compare(other, "openai", trace=path)
    save_trace(Trace("karlo"), path)
    with pytest.raises(UserError, match="a trace of karlo"):
        compare(tmp_path, trace=path)


@pytest.mark.torch
def test_prompts_are_read_where_there_is_a_tokenizer(tmp_path: Path) -> None:
    from unclip_jax.data.tokenizer import train_bpe

    tokenizer = train_bpe(["a red apple", "two cats and a red cat"] * 5, 530, 9)
    path = hf_model(tmp_path, text_config={"vocab_size": tokenizer.vocab_size})
    write_tokenizer(tokenizer, path)
    rows, notes = compare(path, record=tmp_path / "trace.npz")
    assert_all_pass(rows, names(2, 1))
    assert not any("random ids" in note for note in notes)
    tokens = load_trace(tmp_path / "trace.npz", "clip").arrays["text/tokens"]
    np.testing.assert_array_equal(tokens, tokenizer(list(PROMPTS)))


@pytest.mark.torch
def test_an_end_of_text_that_no_vocabulary_has(tmp_path: Path) -> None:
    """Small CLIPs keep transformers' default of 49407: no row has it, and the first is taken."""
    path = hf_model(tmp_path, text_config={"eos_token_id": 49407})
    rows, _ = compare(path, record=tmp_path / "trace.npz")
    assert_all_pass(rows, names(2, 1))
