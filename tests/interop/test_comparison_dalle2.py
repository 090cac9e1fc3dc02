"""`unclip compare dalle2_pytorch` beside the installed package, and from its traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.interop.dalle2_pytorch import prior_reference, unet_reference
from unclip_jax.errors import UserError
from unclip_jax.interop.comparison.dalle2 import run_dalle2
from unclip_jax.interop.comparison.rows import Row, table
from unclip_jax.interop.comparison.trace import Trace, save_trace
from unclip_jax.interop.dalle2_pytorch.folder import decoder_entry
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import write_torch_archive

pytestmark = pytest.mark.torch

NET = {**prior_reference.NET, "num_timesteps": 20}


@pytest.fixture(scope="module", autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


def compare(
    path: Path, config: Path | None = None, version: str | None = None, **given: Any
) -> tuple[list[Row], list[str], list[np.ndarray]]:
    options: dict[str, Any] = {"record": None, "trace": None, "seed": 0, **given}
    rows, notes, pictures = run_dalle2(path, config, version, progress=lambda _: None, **options)
    return rows, notes, pictures


def write_prior(path: Path, job: dict[str, Any], *, version: str = "1.15.6") -> dict[str, Any]:
    """A tracker's file; returns its state dict."""
    _, state = prior_reference.make_prior(prior_reference.package_or_skip(), job, 3)
    config = {"prior": {"net": job["net"], **job["prior"]}}
    write_torch_archive(path, {"version": version, "config": config, "model": from_arrays(state)})
    return state


def write_decoder(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    _, state = unet_reference.make_decoder(prior_reference.package_or_skip(), entry)
    tree = {"version": "1.15.6", "config": {"decoder": entry}, "model": from_arrays(state)}
    write_torch_archive(path, tree)
    return state


def assert_passes(rows: list[Row], *starts: str) -> None:
    assert all(row.passes for row in rows), table(rows)
    for start in starts:
        assert any(row.name.startswith(start) for row in rows), start


@pytest.mark.parametrize(
    "job",
    [
        {"net": NET, "prior": {"timesteps": 20, "cond_drop_prob": 0.1}},
        {
            "net": {**NET, "num_timesteps": None, "self_cond": True, "norm_out": False, "depth": 3},
            "prior": {"timesteps": 9, "predict_x_start": False, "beta_schedule": "cosine"},
        },
        {
            "net": {**NET, "normformer": True, "num_image_embeds": 2, "final_proj": False},
            "prior": {
                "timesteps": 20,
                "cond_drop_prob": 0.2,
                "condition_on_text_encodings": False,
                "predict_v": True,
                "init_image_embed_l2norm": True,
            },
        },
    ],
)
def test_priors(job: dict[str, Any], tmp_path: Path) -> None:
    path, trace = tmp_path / "prior.pth", tmp_path / "trace.npz"
    write_prior(path, job)
    rows, notes, pictures = compare(path, record=trace, seed=5)
    assert_passes(rows, "prior: layer 0", "prior: output", "prior: step", "prior: embedding")
    layers = [row.name for row in rows if "layer" in row.name]
    assert len(layers) == job["net"]["depth"]
    guided = any("guided" in row.name for row in rows)
    assert guided == ("cond_drop_prob" in job["prior"])
    assert pictures == [] and any("reference: DALLE2-pytorch 1.15.6" in note for note in notes)
    again, notes, _ = compare(path, trace=trace)
    assert again == rows and any("bit for bit" in note for note in notes)


def test_a_changed_tensor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the rows after it, and by name; without the package."""
    job = {"net": NET, "prior": {"timesteps": 20, "cond_drop_prob": 0.1}}
    path, trace = tmp_path / "prior.pth", tmp_path / "trace.npz"
    state = write_prior(path, job)
    compare(path, record=trace)
    name = "net.causal_transformer.layers.1.0.to_kv.weight"
    state[name] = state[name] * np.float32(1.01)
    config = {"prior": {"net": job["net"], **job["prior"]}}
    write_torch_archive(path, {"config": config, "model": from_arrays(state)})
    monkeypatch.setitem(sys.modules, "dalle2_pytorch", None)
    rows, notes, _ = compare(path, trace=trace)
    assert rows[0].name == "prior: layer 0" and rows[0].passes
    assert all(not row.passes for row in rows[1:] if "timesteps" not in row.name), table(rows)
    assert any("1 of" in note and name.removeprefix("net.") in note for note in notes)
    with pytest.raises(UserError, match=r"cannot run here .*--trace"):
        compare(path)
    write_prior_of_another_depth = {"net": {**NET, "depth": 1}, "prior": job["prior"]}
    monkeypatch.undo()
    write_prior(path, write_prior_of_another_depth)
    with pytest.raises(UserError, match="a trace of another network"):
        compare(path, trace=trace)


@pytest.mark.parametrize("name", ["learned", "cascade"])
def test_decoders(name: str, tmp_path: Path) -> None:
    entry, path = unet_reference.DECODERS[name], tmp_path / "latest.pth"
    state = write_decoder(path, entry)
    trace = tmp_path / "trace.npz"
    rows, _, pictures = compare(path, record=trace)
    count = len(entry["unets"])
    assert_passes(rows, "U-Net 1: mid_attention", f"U-Net {count}: output", "decoder: picture")
    assert any("guided" in row.name for row in rows)
    steps = [row for row in rows if "step at" in row.name]
    assert len(steps) >= 3
    reference, ours = pictures
    assert np.abs(reference - ours).max() < 1e-3 and reference.std() > 0.1
    if name == "learned":  # one tensor changed: the rows before it agree
        key = "unets.0.mid_block2.block1.project.weight"
        state[key] = state[key] + np.float32(0.05)
        tree = {"version": "1.15.6", "config": {"decoder": entry}, "model": from_arrays(state)}
        write_torch_archive(path, tree)
        rows, notes, _ = compare(path, trace=trace)
        failed = [row.name for row in rows if not row.passes]
        assert failed[0] == "U-Net 1: mid_block_2"
        assert any(key in note for note in notes)


def test_a_config_beside_the_weights(tmp_path: Path) -> None:
    entry = {**unet_reference.DECODERS["dynamic"], "unets": [WIDE], "use_dynamic_thres": False}
    _, state = unet_reference.make_decoder(prior_reference.package_or_skip(), entry)
    write_torch_archive(tmp_path / "latest.pth", from_arrays(state))
    with pytest.raises(UserError, match="holds no config"):
        compare(tmp_path / "latest.pth")
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"decoder": entry}))
    rows, _, _ = compare(tmp_path / "latest.pth", config)
    config.rename(tmp_path / "decoder_config.json")
    assert decoder_entry(tmp_path / "latest.pth") == {"decoder": entry}
    assert_passes(rows, "U-Net 1: down_1_attention", "U-Net 1: up_0_after", "decoder: picture")


WIDE = {
    **unet_reference.TINY,
    "self_attn": [False, True],
    "sparse_attn": True,
    "memory_efficient": True,
    "resnet_weight_standardization": True,
    "combine_upsample_fmaps": True,
    "resnet_groups": 8,
    "image_embed_dim": 10,  # as wide as a token: the package then mixes the rows of a batch
}


def test_another_era_is_refused(tmp_path: Path) -> None:
    """The installed release computes something else with such a file."""
    prior_reference.package_or_skip()
    job = {"net": NET, "prior": {"timesteps": 20}}
    path = tmp_path / "prior.pth"
    state = write_prior(path, job)
    former = {name: x for name, x in state.items() if not name.startswith("net.null_")}
    former["net.null_text_embed"] = state["net.null_text_encodings"]
    config = {"prior": {"net": job["net"], **job["prior"]}}
    write_torch_archive(path, {"config": config, "model": from_arrays(former)})
    with pytest.raises(UserError, match="name the era"):
        compare(path)
    with pytest.raises(UserError, match=r"installed 1\.15\.6, .*install 1\.4\.2, .*--trace"):
        compare(path, None, "legacy")
    frozen = np.load(Path(__file__).parents[1] / "golden" / "dalle2_unets.npz")
    shapes = json.loads(str(frozen["1.1.0/text/shapes"]))
    unet = unet_reference.weights({f"unets.0.{k}": tuple(v) for k, v in shapes.items()})
    entry = unet_reference.FROZEN["1.1.0"]["text"]
    config = {"unets": [entry], "image_size": 8, "timesteps": 30, "learned_variance": False}
    write_torch_archive(path, {"config": config, "model": from_arrays(unet), "version": "1.1.0"})
    with pytest.raises(UserError, match=r"this decoder was written by an older .*--trace"):
        compare(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_torch_archive(path, from_arrays({"input_blocks.0.0.weight": np.zeros((4, 3, 3, 3))}))
    with pytest.raises(UserError, match=r"is adm: name a prior or a decoder"):
        compare(path)
    save_trace(Trace("clip"), tmp_path / "trace.npz")
    write_prior(path, {"net": NET, "prior": {"timesteps": 20}})
    with pytest.raises(UserError, match="a trace of clip"):
        compare(path, trace=tmp_path / "trace.npz")
