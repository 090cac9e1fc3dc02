"""`unclip compare`: exit codes, the table, traces and the pictures side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.interop.clip_models import hf_from_openai, live, save_arrays
from tests.interop.dalle2_pytorch import prior_reference, unet_reference
from tests.interop.karlo_models import Tiny, edit_tensor, make_folder, weights_of
from tests.interop.test_clip_import import HF
from unclip_jax.cli.main import main
from unclip_jax.interop.comparison.trace import Trace, save_trace
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import write_torch_archive

Capture = pytest.CaptureFixture[str]
SMALL = Tiny(super_res=(), prior=(1, 8, 1), channels=(4, 8))
HEADER = ["block", "shape", "max", "abs", "relative", "verdict"]
STEPS = ("--steps", "2", "2", "2")
CLIP_TENSOR = "text/norm_out/bias"


def compare(*arguments: Any) -> int:
    """The exit code of `unclip compare ARGUMENTS`."""
    with pytest.raises(SystemExit) as end:
        main(["compare", *map(str, arguments)])
    return int(end.value.code or 0)


def refused(capsys: Capture, *arguments: Any) -> str:
    """The one line with which it ends."""
    capsys.readouterr()
    assert compare(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.torch
def test_karlo_with_a_trace_for_a_host_without_torch(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded; read where torch is not; a tensor changed, which costs exit code 1."""
    live("diffusers")
    folder, trace, out = tmp_path / "karlo", tmp_path / "trace.npz", tmp_path / "out"
    make_folder(SMALL, folder)
    assert compare("karlo", folder, *STEPS, "--record", trace, "--out", out) == 0
    said = capsys.readouterr().out
    assert "recorded in" in said and "rows pass" in said
    text = (out / "comparison.txt").read_text()
    assert text.splitlines()[0].split() == HEADER
    assert "decoder: picture" in text and "DIFFERS" not in text
    with Image.open(out / "comparison.png") as picture:
        pixels = np.asarray(picture, np.int32)
    # Two prompts, for each the reference's picture and ours, with two pixels around.
    assert pixels.shape == (2 * 10 + 2, 2 * 10 + 2, 3)
    for top in (2, 12):
        left, right = (pixels[top : top + 8, start : start + 8] for start in (2, 12))
        assert left.std() > 5
        assert np.abs(left - right).max() <= 2

    for name in ("torch", "diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert compare("karlo", folder, "--trace", trace, "--out", tmp_path / "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    assert "leave --steps out" in refused(capsys, "karlo", folder, "--trace", trace, *STEPS)
    assert "cannot run here" in refused(capsys, "karlo", folder)
    model = tmp_path / "model"
    with pytest.raises(SystemExit) as end:
        main(["convert", str(folder), str(model)])
    assert not end.value.code
    again = ("karlo", folder, "--trace", trace, "--model", model)
    assert compare(*again) == 0
    capsys.readouterr()
    edit_tensor(model / "clip" / "model.safetensors", CLIP_TENSOR, lambda x: x + np.float32(0.5))
    assert compare(*again) == 1
    assert "the first is text: states" in capsys.readouterr().out
    edit_tensor(weights_of(folder / "decoder"), "conv_in.bias", lambda x: x + np.float32(0.5))
    assert compare("karlo", folder, "--trace", trace) == 1
    said = capsys.readouterr().out
    assert "DIFFERS" in said and "1 of" in said and "conv_in.bias" in said
    assert "rows differ" in said and "the first is decoder:" in said


@pytest.mark.torch
def test_a_clip(tmp_path: Path, golden: Path, capsys: Capture) -> None:
    live("transformers")
    with np.load(golden / "parity_clip.npz") as file:
        weights = {n.removeprefix("w/"): x for n, x in file.items() if n.startswith("w/")}
    text = HF["text_config"] | {"hidden_act": "quick_gelu"}
    vision = HF["vision_config"] | {"hidden_act": "quick_gelu"}
    config = HF | {"text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_arrays(hf_from_openai(weights), tmp_path / "model.safetensors")
    out = tmp_path / "out"
    assert compare("clip", tmp_path, "--record", tmp_path / "t.npz", "--out", out) == 0
    assert "logits" in (out / "comparison.txt").read_text()
    assert not (out / "comparison.png").exists()
    capsys.readouterr()
    # The exact GELU with the quick one's weights.
    text["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert compare("clip", tmp_path, "--trace", tmp_path / "t.npz") == 1
    said = capsys.readouterr().out
    assert "the first is text: block 0" in said and "bit for bit" in said


@pytest.mark.torch
def test_a_prior_and_a_decoder_of_dalle2_pytorch(tmp_path: Path, capsys: Capture) -> None:
    package = prior_reference.package_or_skip()
    net = {**prior_reference.NET, "depth": 1}
    job = {"net": net, "prior": {"timesteps": 20}}
    _, state = prior_reference.make_prior(package, job)
    path, out = tmp_path / "prior.pth", tmp_path / "out"
    write_torch_archive(path, from_arrays(state))
    assert compare("dalle2_pytorch", path, "--out", out, "--seed", 4) == 0
    assert "prior: embedding" in (out / "comparison.txt").read_text()
    assert "DALLE2-pytorch 1.15.6" in capsys.readouterr().out

    entry = {
        "unets": [unet_reference.SMALLEST],
        "image_size": 8,
        "timesteps": 30,
        "learned_variance": False,
        "image_cond_drop_prob": 0.0,
        "text_cond_drop_prob": 0.0,
    }
    _, state = unet_reference.make_decoder(package, entry)
    path, config = tmp_path / "latest.pth", tmp_path / "mine.json"
    write_torch_archive(path, from_arrays(state))
    config.write_text(json.dumps(entry))
    assert "config" in refused(capsys, "dalle2_pytorch", path)
    assert compare("dalle2_pytorch", path, "--config", config, "--out", out) == 0
    with Image.open(out / "comparison.png") as picture:
        assert picture.size[0] > picture.size[1] / 2
    assert "decoder: picture" in (out / "comparison.txt").read_text()


def test_refusals(tmp_path: Path, capsys: Capture) -> None:
    path = save_arrays({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    trace = tmp_path / "trace.npz"
    for words, message in (
        (("karlo", tmp_path / "nothing"), "does not exist"),
        (("karlo", tmp_path), "no text_encoder"),
        (("clip", tmp_path), "neither config.json"),
        (("glide", path), "x.safetensors"),
        (("dalle2_pytorch", path), "no checkpoint that is known"),
        (("dalle3", path), "dalle3"),
        (("clip", path, "--record", trace, "--trace", trace), "give one of them"),
        (("clip", path, "--record", tmp_path / "a" / "b"), "make it first"),
        (("clip", path, "--model", tmp_path), "--model is for karlo"),
        (("karlo", path, "--clip-model", "openai"), "--clip-model is for clip"),
        (("glide", path, "--era", "legacy"), "--era is for dalle2_pytorch"),
        (("dalle2_pytorch", path, "--config", tmp_path / "c.json"), "c.json does not exist"),
        (("glide", path, "--trace", trace), "is no trace"),
    ):
        assert message in refused(capsys, *words), words
    lacking = Trace("clip", {"reference": "none", "shapes": {}})
    lacking.facts["digests"] = {}
    save_trace(lacking, trace)
    assert "is a trace of clip" in refused(capsys, "glide", path, "--trace", trace)
    content = trace.read_bytes()
    damaged = content[:-30], content[:150] + bytes(100) + content[250:], b"", b"PK", b"[1]"
    for data in damaged:
        trace.write_bytes(data)
        assert "is no trace" in refused(capsys, "glide", path, "--trace", trace)
    assert not (tmp_path / "out").exists()
